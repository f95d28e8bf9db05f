"""Several weightings from files."""

import csv
import json
import re

import pytest
import yaml

from tests.cli._run import run

COMPARED = """
weightings:
  equal: FixedWeighting
  learnt:
    class_path: lightning_uncertainty.UncertaintyWeighting
    init_args: {base_weights: {sex: 2.0}}
seeds: [0]
baseline: equal
best_by: val/balanced_loss
out: compared
"""


def compare(folder, *arguments):
    (folder / "compare.yaml").write_text(COMPARED)
    run("compare", "--config", folder / "penguins.yaml", "--config", folder / "compare.yaml", *arguments)


def test_compare_prints_and_writes_what_it_found(fitted, tmp_path, capsys):
    compare(fitted)
    shown = capsys.readouterr().out
    assert "Weightings at the best epoch by val/balanced_loss, 1 seed" in shown
    assert re.search(r"equal.*\(1 seed\)\.\s+One\s+seed\s+does\s+not\s+say", shown)
    for kind, name in [("Numbers", "comparison.csv"), ("Plot", "comparison.png")]:
        assert f"{kind}: {tmp_path / 'compared' / name}" in shown
        assert (tmp_path / "compared" / name).stat().st_size > 300
    with (tmp_path / "compared/comparison.csv").open() as file:
        assert {row["weighting"] for row in csv.DictReader(file)} == {"equal", "learnt"}
    held = [json.loads(file.read_text()) for file in (tmp_path / "compared").glob("*.json")]
    (trial,) = [one for one in held if one.get("name") == "learnt"]
    assert trial["weighting"] == "UncertaintyWeighting(base_weights={'sex': 2.0})"
    assert [row["epoch"] for row in trial["rows"]] == [0.0, 1.0]
    assert not list(tmp_path.rglob("*.ckpt"))


def test_compare_goes_on_and_refuses_another_setup(fitted, tmp_path, capsys):
    compare(fitted)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "compared").glob("[0-9a-f]*.json")}
    compare(fitted, "--seeds", "[0, 1]")
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert len(list((tmp_path / "compared").glob("[0-9a-f]*.json"))) == 4
    for option, value, name in [
        ("--trainer.max_epochs", 3, "trainer.max_epochs"),
        ("--model.optimizer.lr", 0.1, "hyper-parameter optimizer"),
        ("--data.seed", 1, "setup.data"),
    ]:
        with pytest.raises(SystemExit, match=f"a folder should hold trials of one setup: .* {name} was"):
            compare(fitted, option, value)


def test_compare_takes_settings_by_their_path(fitted, tmp_path, capsys):
    lr = "model.optimizer.init_args.lr"
    compare(fitted, "--best_by", "null", "--settings", f"{{{lr}: [1e-5, 1e-2]}}", "--trainer.max_epochs", "1")
    assert f"{lr}=0.01" in " ".join(capsys.readouterr().out.split()).replace(" ", "")
    held = [json.loads(file.read_text()) for file in (tmp_path / "compared").glob("[0-9a-f]*.json")]
    assert {(one["name"], one["settings"][lr]) for one in held} == {
        (name, rate) for name in ("equal", "learnt") for rate in ("1e-05", "0.01")
    }
    assert len({json.dumps(one["rows"]) for one in held}) == 4
    for path in ("model.lr", "trainer.max_epochs", "model.weighting", "seed_everything"):
        with pytest.raises(SystemExit, match=rf"settings should be paths .* below model or data.* found '{path}'"):
            compare(fitted, "--best_by", "null", "--settings", f"{{{path}: [1, 2]}}", "--trainer.max_epochs", "1")


def test_compare_that_is_interrupted_says_what_is_kept(fitted, tmp_path, capsys, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_uncertainty.trials.comparing.run_trial", interrupted)
    with pytest.raises(SystemExit) as ended:
        compare(fitted)
    assert ended.value.code == 130
    assert f"interrupted: 0 of 2 trials are kept in {tmp_path / 'compared'}; the same call" in capsys.readouterr().err


def test_compare_says_what_is_wrong_in_a_sentence(fitted, capsys):
    with pytest.raises(SystemExit, match="baseline should be 'single task', None, or one of equal, learnt: found 'x'"):
        compare(fitted, "--baseline", "x")
    with pytest.raises(SystemExit):
        compare(fitted, "--weightings", "{sigma: Sigma}")
    assert re.search("weightings.*Sigma", capsys.readouterr().err, re.DOTALL)


def test_compare_takes_a_module_of_the_users_own(fitted, tmp_path, capsys):
    config = yaml.safe_load((fitted / "penguins.yaml").read_text())
    config["model"] = {"class_path": "tests.cli._nets.Own", "init_args": {"width": 4}}
    config["trainer"] |= {"max_epochs": 1, "logger": False}
    (tmp_path / "penguins.yaml").write_text(yaml.safe_dump(config))
    settings = ("--best_by", "null", "--settings", "{model.init_args.width: [3, 5]}")
    compare(tmp_path, *settings)
    held = [json.loads(file.read_text()) for file in (tmp_path / "compared").glob("[0-9a-f]*.json")]
    assert len(held) == 2 * 2
    assert {one["settings"]["model.init_args.width"] for one in held} == {"3", "5"}
    with pytest.raises(SystemExit, match=r"a folder should hold trials of one setup: .*setup.model was"):
        compare(tmp_path, *settings, "--model.width", "6")
    with pytest.raises(SystemExit, match=r"settings .* not model\.init_args\.weighting: found 'model"):
        compare(tmp_path, "--settings", "{model.init_args.weighting: [1, 2]}", "--best_by", "null", "--out", "x")
    with pytest.raises(
        SystemExit, match=r"to compare should take the argument weighting: found none of tests.cli._nets.Theirs"
    ):
        compare(tmp_path, "--model", "tests.cli._nets.Theirs")
