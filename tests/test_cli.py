"""The commands, run as a newcomer runs them, and what they answer to mistakes."""

import csv
import json
import os
import re
import subprocess
import sys
from copy import deepcopy
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning import LightningDataModule

from lightning_uncertainty import cli
from lightning_uncertainty.cli import main
from lightning_uncertainty.examples.demo import demo
from lightning_uncertainty.examples.penguins import PenguinData, Trunk
from lightning_uncertainty.module import MultiTaskModule
from tests import _wandb_reader
from tests._versions import has

EXAMPLE = files("lightning_uncertainty.examples").joinpath("penguins.yaml").read_text(encoding="utf-8")
ELSEWHERE = "ignore:The dirpath has changed"  # ModelCheckpoint's, of a checkpoint of another run


class Broken(LightningDataModule):
    def __init__(self) -> None:
        raise ValueError("a bug of the user's own")


MADE: list[tuple[Trunk, Trunk]] = []  # each beside what it was at first


def make_trunk(dropout: float = 0.5) -> Trunk:
    trunk = Trunk(dropout)
    MADE.append((trunk, deepcopy(trunk)))
    return trunk


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    """Without jsonargparse's warnings of how Lightning calls it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        yield


def run(*arguments):
    """Run the command line in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lightning-uncertainty", *map(str, arguments)])
        main()


def subprocess_of(*arguments, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true", "COLUMNS": "100"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    environment.pop("WANDB_SERVICE", None)  # a process of its own, as a newcomer's
    command = [sys.executable, "-m", "lightning_uncertainty", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- demo --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_logs_prints_and_plots(tmp_path):
    printed = subprocess_of("demo", "--epochs", "3", "--out", "out", cwd=tmp_path)
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line.strip()}
    assert {"species", "sex", "body_mass_g", "flipper_length_mm"} <= set(rows)
    grams = re.search(r"σ of the body mass is (\d+) g; on held-out birds the net is off by (\d+) g", printed)
    sigma, rmse = map(int, grams.groups())
    assert 200 < rmse < 1000
    assert 200 < sigma < 1000
    assert f"{sigma}" == f"{float(rows['body_mass_g'][4]):.0f}"
    assert (tmp_path / "out/sigma.png").stat().st_size > 10_000
    page = Path(re.search(r"The same and more, for a browser: (\S+)", printed).group(1))
    assert page == tmp_path / "out/report.html"
    assert "body_mass_g" in page.read_text(encoding="utf-8")
    folder = re.search(r"wandb sync (\S+)", printed).group(1)
    assert (f"wandb leet {folder}" in printed) == has("wandb", "0.28")
    written = _wandb_reader.history(tmp_path / folder)
    assert any("sigma/body_mass_g" in row for row in written)
    board = re.search(r"tensorboard --logdir (\S+)", printed).group(1)
    assert {path.name for path in (tmp_path / board).iterdir()} == {"uncertainty", "equal"}
    assert "Epoch 2/2" in printed


def test_the_demo_names_what_is_missing(monkeypatch):
    find = "lightning_uncertainty.examples.demo.find_spec"
    monkeypatch.setattr(find, lambda name: None if name == "tensorboard" else object())
    with pytest.raises(SystemExit, match=r"the demo needs tensorboard: pip install 'lightning-uncertainty\[demo\]'"):
        demo()
    monkeypatch.setattr(find, lambda name: object())
    with pytest.raises(SystemExit, match="epochs should be at least 1: found 0"):
        demo(epochs=0)
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    with pytest.raises(SystemExit, match=r"the command line needs jsonargparse.*\[cli\]"):
        main()


# -- fit, validate, test, predict --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with the example's file and a run of two epochs."""
    folder = tmp_path_factory.mktemp("fitted")
    config = yaml.safe_load(EXAMPLE)
    config["trainer"] |= {"enable_progress_bar": False, "max_epochs": 2}
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(folder / "runs")
    (folder / "penguins.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run("fit", "--config", folder / "penguins.yaml")
    return folder


def checkpoints(folder):
    return folder / "runs/penguins/version_0/checkpoints"


def test_fit_leaves_rows_configuration_and_checkpoints(fitted):
    folder = fitted / "runs/penguins/version_0"
    columns = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"sigma/body_mass_g", "weight/sex", "val/balanced_loss", "val/species/MulticlassAccuracy"} <= set(columns)
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["inputs"] == "features"
    assert {path.name for path in checkpoints(fitted).iterdir()} == {"best.ckpt", "last.ckpt"}


def test_the_configuration_makes_the_optimizer(fitted):
    (state,) = torch.load(checkpoints(fitted) / "last.ckpt", weights_only=True)["optimizer_states"]
    network, own = state["param_groups"]
    assert (network["initial_lr"], network["weight_decay"]) == (0.003, 0.1)
    assert (own["initial_lr"], own["weight_decay"], own["name"]) == (pytest.approx(0.03), 0.0, "log_variances")


def test_a_checkpoint_of_the_command_line_loads_without_arguments(fitted):
    loaded = MultiTaskModule.load_from_checkpoint(checkpoints(fitted) / "last.ckpt")
    saved = torch.load(checkpoints(fitted) / "last.ckpt", weights_only=True)["state_dict"]
    assert list(loaded.task_heads) == ["species", "sex", "body_mass_g", "flipper_length_mm"]
    assert all(torch.equal(value, saved[name]) for name, value in loaded.named_parameters())
    assert loaded.sigma()["body_mass_g"] > 100


@pytest.mark.filterwarnings(ELSEWHERE)
@pytest.mark.parametrize(("command", "stage"), [("validate", "val"), ("test", "test")])
def test_checkpoints_are_evaluated(fitted, command, stage, capsys):
    run(command, "--config", fitted / "penguins.yaml", "--ckpt_path", checkpoints(fitted) / "best.ckpt")
    shown = capsys.readouterr().out
    loaded = MultiTaskModule.load_from_checkpoint(checkpoints(fitted) / "best.ckpt").eval()
    birds = getattr(PenguinData(), stage)[:]
    kind = loaded(birds["features"])["species"].argmax(1)
    recalls = [(kind[birds["species"] == k] == k).double().mean() for k in range(3)]
    accuracy = re.search(rf"{stage}/species/MulticlassAccuracy\s*│\s*(\S+)", shown).group(1)
    assert float(accuracy) == pytest.approx(sum(recalls).item() / 3)


@pytest.mark.filterwarnings(ELSEWHERE)
def test_predictions_are_written_and_gathered(fitted, capsys, tmp_path):
    run("predict", "--config", fitted / "penguins.yaml", "--ckpt_path", checkpoints(fitted) / "best.ckpt")
    folder = re.search(r"a file a batch: (\S+)\n", capsys.readouterr().out).group(1)
    run("gather", folder, "--out", tmp_path / "all/predictions.pt")
    assert str(tmp_path / "all/predictions.pt") in capsys.readouterr().out
    gathered = torch.load(tmp_path / "all/predictions.pt", weights_only=True)
    loaded = MultiTaskModule.load_from_checkpoint(checkpoints(fitted) / "best.ckpt").eval()
    predictions = loaded.predict_tasks(PenguinData().test[:]["features"])
    assert gathered["indices"].tolist() == list(range(len(PenguinData().test)))
    for task, prediction in predictions.items():
        for kind, value in prediction._asdict().items():
            torch.testing.assert_close(gathered["predictions"][task][kind], value)
    with pytest.raises(SystemExit, match="there should be predictions of dataloader 1"):
        run("gather", folder, "--dataloader", 1)


@pytest.mark.filterwarnings("ignore:the aleatoric uncertainty of", ELSEWHERE)
def test_how_samples_are_drawn_and_who_writes_them_is_configured(tmp_path, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(MultiTaskModule, "predict_tasks", lambda self, inputs, **options: seen.append(options) or {})
    config = yaml.safe_load(EXAMPLE)
    config["trainer"] |= {"enable_progress_bar": False, "logger": False, "limit_predict_batches": 2}
    config["trainer"]["callbacks"] = [
        {
            "class_path": "lightning_uncertainty.callbacks.PredictionWriter",
            "init_args": {"folder": str(tmp_path / "mine")},
        }
    ]
    (tmp_path / "penguins.yaml").write_text(yaml.safe_dump(config))
    sampling = ["--model.sampling.seed", 5, "--model.sampling.max_rows", 7, "--model.sampling.also", "[torch.nn.GELU]"]
    run("predict", "--config", tmp_path / "penguins.yaml", "--model.samples", 3, *sampling)
    same = {"samples": 3, "max_rows": 7, "also": (torch.nn.GELU,)}
    assert seen == [{**same, "seed": 5}, {**same, "seed": 6}]
    assert f"a file a batch: {tmp_path / 'mine'}\n" in capsys.readouterr().out
    assert len([*(tmp_path / "mine").glob("batch-*.pt")]) == 2


@pytest.mark.filterwarnings(ELSEWHERE)
def test_a_fit_is_resumed(fitted, tmp_path):
    last = ["--ckpt_path", checkpoints(fitted) / "last.ckpt"]
    more = ["--trainer.max_epochs", 3, "--trainer.logger.init_args.save_dir", tmp_path]
    run("fit", "--config", fitted / "penguins.yaml", *last, *more)
    resumed = torch.load(tmp_path / "penguins/version_0/checkpoints/last.ckpt", weights_only=True)
    assert (resumed["epoch"], resumed["global_step"]) == (2, 21)


@pytest.mark.slow
def test_the_example_trains_wherever_it_is_written(tmp_path, capsys):
    run("example")
    printed = capsys.readouterr().out
    assert printed == EXAMPLE
    (tmp_path / "penguins.yaml").write_text(printed, encoding="utf-8")
    printed = subprocess_of("fit", "--config", "penguins.yaml", "--trainer.max_epochs", "5", cwd=tmp_path)
    assert "Task uncertainty after 35 steps" in printed
    assert (tmp_path / "runs/penguins/version_0/checkpoints/best.ckpt").exists()


def test_a_backbone_may_come_from_a_function(fitted, tmp_path):
    config = yaml.safe_load((fitted / "penguins.yaml").read_text())
    config["model"]["backbone"] = {"class_path": "tests.test_cli.make_trunk", "init_args": {"dropout": 0.1}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    MADE.clear()
    run("fit", "--config", tmp_path / "x.yaml", "--trainer.fast_dev_run", 1)
    ((trunk, first),) = MADE
    assert trunk[2].p == 0.1
    assert not any(map(torch.equal, trunk.parameters(), first.parameters()))


# -- compare -----------------------------------------------------------------------------------------------------------

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


# -- mistakes ----------------------------------------------------------------------------------------------------------

UNCERTAINTY = "lightning_uncertainty.UncertaintyWeighting"
MISTAKES = {
    "model.optimiser": (
        "SGD",
        "does not accept option 'model.optimiser'.*model has: backbone, tasks, weighting, inputs",
    ),
    "monitor.tabel": (True, "does not accept option 'monitor.tabel'.*monitor has: prefix, progress_bar, table"),
    "trainer.max_epoch": (1, "does not accept option 'trainer.max_epoch'"),
    "data": (None, "required: fit.data"),
    "data.init_args.sed": (1, "Option 'sed' is not accepted"),
    "model.backbone": (None, "required: fit.model.backbone"),
    "model.backbone.class_path": ("tests.test_cli.Net", "model.backbone.*'tests.test_cli' has no attribute 'Net'"),
    "model.inputs": (3, "model.inputs.*- Expected a <class 'str'>"),
    "model.optimizer.init_args.rate": (1, "model.optimizer.*Option 'rate' is not accepted"),
    "model.weighting": ("sigma", "model.weighting.*Given value: sigma.*weightings: .*, FixedWeighting, .*Uncertainty"),
    "model.weighting.class_path": (
        "torch.nn.Linear",
        "torch.nn.Linear does not .* subclass of Weighting.*weightings: ",
    ),
    "model.weighting.init_args.base_weights": ({"mass": 1}, r"base_weights should name .* \(species, .*found mass"),
    "model.tasks": (None, "required: fit.model.tasks.*a task has: likelihood, head, target, mask, metrics"),
    "model.tasks.sex": ("bernoulli", "model.tasks.*bernoulli.*a task has: likelihood, head"),
    "model.tasks.sex.heads": (1, "model.tasks.*Option 'heads' is not accepted.*a task has: likelihood, head"),
    "model.tasks.sex.likelihood": ("bernuli", "should be one of gaussian, laplace.*, bernoulli.*: found 'bernuli'"),
    "model.tasks.sex.head": (None, "every task should have a head: found none for sex"),
    "model.tasks.sex.head.init_args.in_feature": (6, "Option 'in_feature' is not accepted"),
    "model.tasks.sex.metrics": ("accuracy", "model.tasks.*metrics.*Given value: accuracy"),
    "model.tasks.train": ({"likelihood": "gaussian"}, "a task's name should be .*: found 'train'; rename it"),
    "model.tasks.body_mass_g.likelihood.class_path": (
        "lightning_uncertainty.likelihoods.Gausian",
        "likelihood.*has no attribute 'Gausian'",
    ),
    "model.tasks.body_mass_g.head.init_args.std": (0, "mean should be finite and std positive"),
    "monitor.max_rows": (1, "max_rows should be at least 2: found 1"),
}


@pytest.mark.parametrize("key", MISTAKES)
def test_a_mistake_in_the_file_is_named(key, tmp_path, capsys):
    value, expected = MISTAKES[key]
    config = yaml.safe_load(EXAMPLE)
    *groups, last = key.split(".")
    place = config
    for group in groups:
        place = place.setdefault(group, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    with pytest.raises(SystemExit) as stopped:
        run("fit", "--config", tmp_path / "x.yaml")
    sentence = stopped.value.code if isinstance(stopped.value.code, str) else ""
    told = sentence or capsys.readouterr().err
    assert stopped.value.code == sentence or stopped.value.code == 2
    assert re.search(expected, told, re.DOTALL), told
    assert told.count("a configuration that works") == (not sentence)
    assert "Union" not in told
    assert len(told.splitlines()) < 15, told


def test_batches_that_lack_what_the_tasks_need_are_told_in_a_sentence(fitted):
    with pytest.raises(SystemExit, match="inputs should be under 'image' in the batch: found keys features, species"):
        run("fit", "--config", fitted / "penguins.yaml", "--model.inputs", "image", "--trainer.logger", "false")


def test_errors_of_others_keep_their_traceback(fitted):
    with pytest.raises(ValueError, match="a bug of the user's own"):
        run("fit", "--config", fitted / "penguins.yaml", "--data", "tests.test_cli.Broken")


# -- report, workspace, help -------------------------------------------------------------------------------------------


def test_report_writes_a_page_of_a_run(fitted, tmp_path, capsys):
    run("report", fitted / "runs/penguins/version_0", "--out", "page.html")
    assert capsys.readouterr().out.strip() == f"Report: {tmp_path / 'page.html'}"
    assert "flipper_length_mm" in (tmp_path / "page.html").read_text(encoding="utf-8")
    run("report", fitted / "runs/penguins/version_0")
    assert (tmp_path / "report.html").exists()


def test_report_says_what_is_wrong_in_a_sentence(fitted, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="nothing_here"):
        run("report", "nothing_here")
    with pytest.raises(SystemExit, match="a report should be written to a file: found the folder"):
        run("report", fitted / "runs/penguins/version_0", "--out", tmp_path)
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(SystemExit, match=r"plotly.*pip install 'lightning-uncertainty\[report\]'"):
        run("report", fitted / "runs/penguins/version_0")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("tasks", ["depth,kind", "depth, kind", "[depth, kind]"])
def test_workspace_prints_the_address(tasks, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cli, "save_wandb_workspace", lambda *a, **k: asked.append((a, k)) or "https://wandb.test/w")
    run("workspace", "me", "scenes", tasks, "--prefix", "u/", "--more", "{host: [train_loss]}")
    options = {"prefix": "u/", "more": {"host": ["train_loss"]}, "pictures": "pictures/"}
    assert asked == [(("me", "scenes", ["depth", "kind"]), options)]
    assert capsys.readouterr().out.strip() == "Workspace: https://wandb.test/w"


def test_workspace_takes_the_names_of_metrics(monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "save_wandb_workspace", lambda *a, **k: asked.append(a) or "https://wandb.test/w")
    run("workspace", "me", "scenes", "{depth: [MeanAbsoluteError], kind: []}")
    assert asked == [("me", "scenes", {"depth": ["MeanAbsoluteError"], "kind": []})]


def test_workspace_says_what_is_wrong_in_a_sentence(monkeypatch):
    with pytest.raises(SystemExit, match="depth"):
        run("workspace", "me", "scenes", "depth,depth")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(SystemExit, match=r"pip install 'lightning-uncertainty\[workspace\]'"):
        run("workspace", "me", "scenes", "depth")


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    listed = re.findall(r"^    (\w+) {2,}\w", capsys.readouterr().out, re.MULTILINE)
    assert listed == [
        "demo",
        "example",
        "fit",
        "validate",
        "test",
        "predict",
        "compare",
        "gather",
        "report",
        "workspace",
    ]


def test_help_documents_every_argument_of_model_and_monitor(capsys):
    with pytest.raises(SystemExit):
        run("fit", "--help")
    shown = capsys.readouterr().out
    for argument in ("backbone", "tasks", "weighting", "inputs", "optimizer", "lr_scheduler"):
        assert re.search(rf"^  --model.{argument} \S+\s+\w[^(]*\w", shown, re.MULTILINE), argument
    assert "--monitor.table" in shown
    assert "--optimizer" not in shown  # Lightning's, which would decay the log-variances
