"""The commands, run as a newcomer runs them."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import lightning_uncertainty.cli.commands as cli
from lightning_uncertainty.cli.commands import commands, main
from lightning_uncertainty.examples.demo import demo
from tests import _wandb_reader
from tests._versions import has
from tests.cli._page import parsers, table
from tests.cli._run import run, subprocess_of

PAGE = Path(__file__).parents[2] / "docs/command-line.md"


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
    options = {"prefix": "u/", "more": {"host": ["train_loss"]}, "pictures": "pictures/", "log": ["sigma", "weight"]}
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
        "completion",
    ]


def test_help_documents_every_argument_of_model_and_monitor(capsys):
    with pytest.raises(SystemExit):
        run("fit", "--help")
    shown = capsys.readouterr().out
    for argument in ("backbone", "tasks", "weighting", "inputs", "optimizer", "lr_scheduler"):
        assert re.search(rf"^  --model.{argument} \S+\s+\w[^(]*\w", shown, re.MULTILINE), argument
    assert "--monitor.table" in shown
    assert "--optimizer" not in shown  # Lightning's, which would decay the log-variances


def test_the_version_is_printed(capsys):
    run("--version")
    assert capsys.readouterr().out.strip() == f"lightning-uncertainty {version('lightning-uncertainty')}"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["fi"], {"fit"}),
        (["--v"], {"--version"}),
        (["fit", "--model.back"], {"--model.backbone", "--model.backbone.help"}),
        (["predict", "--config", "x.yaml", "--ckpt"], {"--ckpt_path"}),
        (["compare", "--see"], {"--seed_everything", "--seeds"}),
        (["report", "--o"], {"--out"}),
        (["report", "ru"], set()),
    ],
)
def test_a_shell_completes_commands_and_options(completing, words, found):
    line = " ".join(f"'{word}'" for word in ["lightning-uncertainty", *words])
    program = f"source {completing}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _lightning_uncertainty"
    shown = subprocess.run(["bash", "-c", f'{program}; echo "${{COMPREPLY[@]}}"'], capture_output=True, text=True)
    assert (set(shown.stdout.split()), shown.stderr) == (found, "")


@pytest.fixture(scope="module")
def completing(tmp_path_factory):
    path = tmp_path_factory.mktemp("completing") / "script"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as file:
        patch.setattr(sys, "stdout", file)
        run("completion")
    return path


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_the_guides_page_says_what_the_help_says():
    page, of = PAGE.read_text(encoding="utf-8"), parsers()
    first = {name: command.__doc__.strip().splitlines()[0] for name, command in commands().items()}
    assert "\n".join(f"| `{name}` | {line} |" for name, line in first.items()) in page
    shown = [table(of[name]) for name in ("compare", "gather", "report", "workspace", "example", "demo")]
    shown += [table(of["fit"], "model"), table(of["fit"], "monitor")]
    assert [one for one in shown if one not in page] == []
    assert all(one.count("\n") > 1 for one in shown)
    known = {option for parser in of.values() for action in parser._actions for option in action.option_strings}
    named = {option for option in re.findall(r"--[a-z_.]+", page) if not option.startswith("--model.")}
    assert named - known == {"--version"}
