"""Fit, validate, test and predict from files."""

import os
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml

from lightning_uncertainty.callbacks import UncertaintyMonitor
from lightning_uncertainty.cli import MultiTaskCLI
from lightning_uncertainty.examples.penguins import PenguinData, Trunk
from lightning_uncertainty.module import MultiTaskModule
from tests.cli._nets import Own
from tests.cli._run import ELSEWHERE, EXAMPLE, checkpoints, run, subprocess_of

MADE: list[tuple[Trunk, Trunk]] = []  # each beside what it was at first


def make_trunk(dropout: float = 0.5) -> Trunk:
    trunk = Trunk(dropout)
    MADE.append((trunk, deepcopy(trunk)))
    return trunk


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


def read(printed):
    """Return what `predict` has written, batch by batch, from what it printed."""
    folder = Path(re.search(r"a file a batch: (\S+)\n", printed).group(1))
    return [torch.load(path, weights_only=True)["predictions"] for path in sorted(folder.glob("batch-*.pt"))]


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
    config["model"]["backbone"] = {"class_path": "tests.cli.test_trainer.make_trunk", "init_args": {"dropout": 0.1}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    MADE.clear()
    run("fit", "--config", tmp_path / "x.yaml", "--trainer.fast_dev_run", 1)
    ((trunk, first),) = MADE
    assert trunk[2].p == 0.1
    assert not any(map(torch.equal, trunk.parameters(), first.parameters()))


# -- of a checkpoint ---------------------------------------------------------------------------------------------------


def predicted(fitted, capsys, *arguments):
    """Return what `predict` writes of the run's last checkpoint, and all that it prints."""
    capsys.readouterr()
    run("predict", "--config", fitted / "penguins.yaml", "--ckpt_path", checkpoints(fitted) / "last.ckpt", *arguments)
    printed = capsys.readouterr().out
    return read(printed), printed


@pytest.mark.filterwarnings(ELSEWHERE)
def test_what_is_given_wins_over_the_checkpoint_and_is_printed(fitted, capsys):
    batches, printed = predicted(fitted, capsys, "--model.samples", 4)
    assert all((prediction["epistemic"] > 0).all() for prediction in batches[0].values())
    assert "Otherwise than in the checkpoint:\n  model.samples: 4 (in the checkpoint not given)\n" in printed
    batches, printed = predicted(fitted, capsys)
    assert all((prediction["epistemic"] == 0).all() for prediction in batches[0].values())
    assert "checkpoint:" not in printed


@pytest.mark.filterwarnings(ELSEWHERE)
def test_what_is_not_given_is_that_of_the_checkpoint(fitted, tmp_path, capsys):
    more = ("--trainer.logger.init_args.save_dir", tmp_path, "--trainer.max_epochs", 1)
    run("fit", "--config", fitted / "penguins.yaml", *more, "--model.samples", 3)
    config = yaml.safe_load((fitted / "penguins.yaml").read_text())
    del config["model"]
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    capsys.readouterr()
    last = tmp_path / "penguins/version_0/checkpoints/last.ckpt"
    run("predict", "--config", tmp_path / "x.yaml", f"--ckpt_path={last}", "--model.backbone.init_args.dropout", 0.5)
    printed = capsys.readouterr().out
    batches = read(printed)
    assert all((prediction["epistemic"] > 0).all() for prediction in batches[0].values())
    assert printed.count("(in the checkpoint ") == 1
    assert "model.backbone.init_args.dropout: 0.5 (in the checkpoint 0.2)" in printed


@pytest.mark.filterwarnings(ELSEWHERE)
@pytest.mark.parametrize("where", ["file", "option"])
def test_another_backbone_of_the_file_wins_whole(fitted, tmp_path, capsys, where):
    config = yaml.safe_load((fitted / "penguins.yaml").read_text())
    more = ["--model.backbone", "tests.cli._nets.Wide"]
    if where == "file":
        config["model"]["backbone"], more = {"class_path": "tests.cli._nets.Wide"}, []
    else:
        del config["model"]["backbone"]
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(RuntimeError, match=r"Missing key.*backbone\.net\.0\.weight"):
        run("test", "--config", tmp_path / "x.yaml", "--ckpt_path", checkpoints(fitted) / "last.ckpt", *more)
    printed = capsys.readouterr().out
    assert "model.backbone.class_path: tests.cli._nets.Wide (in the checkpoint lightning_uncertainty.ex" in printed
    assert "model.backbone.init_args.dropout: 0.0 (in the checkpoint 0.2)" in printed


@pytest.mark.filterwarnings(ELSEWHERE)
def test_arguments_of_a_checkpoint_that_the_model_has_no_more_are_told(fitted, tmp_path, capsys):
    old = torch.load(checkpoints(fitted) / "last.ckpt", weights_only=True)
    old["hyper_parameters"]["temperature"] = 2.0
    torch.save(old, tmp_path / "old.ckpt")
    run("test", "--config", fitted / "penguins.yaml", "--ckpt_path", tmp_path / "old.ckpt", "--model.samples", 2)
    printed = capsys.readouterr().out
    assert re.search(r"Arguments in the checkpoint are not used: .*temperature", printed)
    assert "model.samples: 2 (in the checkpoint not given)" in printed
    assert "model.temperature: not given (in the checkpoint 2.0)" in printed


@pytest.mark.filterwarnings(ELSEWHERE)
def test_what_a_resumed_optimizer_does_not_take_is_told(fitted, tmp_path, capsys):
    last = ["--ckpt_path", checkpoints(fitted) / "last.ckpt"]
    more = ["--trainer.max_epochs", 3, "--trainer.logger.init_args.save_dir", tmp_path]
    run("fit", "--config", fitted / "penguins.yaml", *last, *more, "--model.optimizer.init_args.lr", 0.5)
    printed = capsys.readouterr().out
    assert "model.optimizer.init_args.lr: 0.5 (in the checkpoint 0.003)" in printed
    assert "A resumed fit takes up the state of optimizer and scheduler" in printed
    resumed = torch.load(tmp_path / "penguins/version_0/checkpoints/last.ckpt", weights_only=True)
    assert resumed["optimizer_states"][0]["param_groups"][0]["lr"] < 0.003  # as Lightning restores it


# -- modules of users' own ---------------------------------------------------------------------------------------------


def of_class(fitted, tmp_path, class_path, **trainer):
    """Write a file that trains another class on the example's data."""
    config = yaml.safe_load((fitted / "penguins.yaml").read_text())
    config["model"] = {"class_path": class_path, "init_args": {"width": 12}}
    config["trainer"] |= {"max_epochs": 1, "logger": False, **trainer}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "own.yaml"


@pytest.mark.filterwarnings(ELSEWHERE)
def test_a_module_of_the_users_own_is_fitted_and_read_back(fitted, tmp_path, capsys):
    path = of_class(fitted, tmp_path, "tests.cli._nets.Own")
    run("fit", "--config", path)
    printed = capsys.readouterr().out
    assert re.search(r"species +categorical", printed)
    (last,) = tmp_path.rglob("last.ckpt")
    assert Own.load_from_checkpoint(last).net[0].out_features == 12
    run("predict", "--config", path, "--ckpt_path", last)
    printed = capsys.readouterr().out
    batches = read(printed)
    assert batches[0].ndim == 1
    with pytest.raises(RuntimeError, match="size mismatch"):
        run("predict", "--config", path, "--ckpt_path", last, "--model.init_args.width", "16")
    assert "model.init_args.width: 16 (in the checkpoint 12)" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--model", "--model.class_path", "--model="])
def test_a_module_of_the_users_own_may_be_an_option(fitted, tmp_path, option, capsys):
    config = yaml.safe_load((fitted / "penguins.yaml").read_text())
    del config["model"]
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    named = [option + "tests.cli._nets.Own"] if option.endswith("=") else [option, "tests.cli._nets.Own"]
    run("fit", "--config", tmp_path / "x.yaml", *named, "--model.width", 5, "--trainer.fast_dev_run", 1)
    assert "of 5" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:You passed in a .val_dataloader.")
def test_a_module_whose_losses_a_callback_takes_apart_is_fitted(fitted, tmp_path, capsys):
    losses = {
        "tasks": {"kind": "categorical", "flipper": "gaussian"},
        "parts": {"kind": "log:kind", "flipper": "log:flipper"},
    }
    callbacks = [{"class_path": "lightning_uncertainty.AdoptLosses", "init_args": losses}]
    run("fit", "--config", of_class(fitted, tmp_path, "tests.cli._nets.Theirs", callbacks=callbacks))
    assert re.search(r"flipper +gaussian", capsys.readouterr().out)


@pytest.mark.filterwarnings("ignore:You passed in a .val_dataloader.")
def test_a_module_without_tasks_is_told_in_a_sentence(fitted, tmp_path):
    with pytest.raises(SystemExit, match="MultiTaskMixin"):
        run("fit", "--config", of_class(fitted, tmp_path, "tests.cli._nets.Theirs"))


def test_arguments_of_the_users_own_class_are_listed_and_checked(fitted, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("fit", "--model.help", "tests.cli._nets.Own")
    assert re.search(r"--model.width WIDTH\s+of the hidden layer", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        run("fit", "--config", of_class(fitted, tmp_path, "tests.cli._nets.Own"), "--model.init_args.depth", "3")
    assert re.search("depth.*is not accepted|does not accept.*depth", capsys.readouterr().err)


def test_the_class_is_made_to_be_subclassed(fitted, tmp_path, monkeypatch):
    class SceneCLI(MultiTaskCLI):
        def add_arguments_to_parser(self, parser):
            super().add_arguments_to_parser(parser)
            parser.add_argument("--width", type=int, default=8)
            parser.link_arguments("width", "model.width")

        def before_fit(self):
            self.seen = self.model.net[0].out_features

    options = ["--data", "lightning_uncertainty.examples.penguins.PenguinData", "--trainer.fast_dev_run", "1"]
    monkeypatch.setattr(sys, "argv", ["scenes.py", "fit", "--width", "7", *options])
    assert SceneCLI(Own).seen == 7
    monkeypatch.setattr(sys, "argv", ["scenes.py"])
    built = MultiTaskCLI(Own, PenguinData, run=False, args=["--model.width", "6", "--data.seed", "1"])
    assert (built.model.net[0].out_features, built.datamodule.seed) == (6, 1)
    assert any(isinstance(callback, UncertaintyMonitor) for callback in built.trainer.callbacks)


def test_classes_of_the_current_folder_are_found(tmp_path):
    (tmp_path / "mydata.py").write_text(
        "from lightning_uncertainty.examples.penguins import PenguinData\n\nclass DM(PenguinData):\n    pass\n"
    )
    (tmp_path / "x.yaml").write_text(
        EXAMPLE.replace("lightning_uncertainty.examples.penguins.PenguinData", "mydata.DM")
    )
    script = Path(sys.executable).with_name("lightning-uncertainty")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [script, "fit", "--config", "x.yaml", "--trainer.fast_dev_run", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
