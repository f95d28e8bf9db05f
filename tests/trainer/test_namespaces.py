"""`pytorch_lightning` and `lightning.pytorch`: Trainers, command lines and checkpoints of both, and across."""

import importlib
import subprocess
import sys
from pathlib import Path

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import nn

from lightning_uncertainty import Task, UncertaintyMonitor, UncertaintyWarmUp
from lightning_uncertainty.module import MultiTaskSteps
from tests._nets import QUIET, dicts, tensors, trainer

PACKAGES = {"pytorch_lightning": pytorch_lightning, "lightning.pytorch": lightning.pytorch}


class Configured(MultiTaskSteps):
    """A module that a command line can build."""

    def __init__(self, width: int = 8) -> None:
        heads = {"depth": Task("gaussian", nn.Linear(width, 1)), "kind": Task("categorical", nn.Linear(width, 3))}
        super().__init__(nn.Linear(4, width), heads, inputs="x")


class OfPytorchLightning(Configured, pytorch_lightning.LightningModule):
    pass


class OfLightning(Configured, lightning.pytorch.LightningModule):
    pass


MODULES = {"pytorch_lightning": OfPytorchLightning, "lightning.pytorch": OfLightning}
OTHER = {"pytorch_lightning": "lightning.pytorch", "lightning.pytorch": "pytorch_lightning"}


def fit_of(package, net, epochs=2, callbacks=(), **options):
    fit = trainer(PACKAGES[package], max_epochs=epochs, callbacks=list(callbacks))
    fit.fit(net, dicts(128, 32), **options)
    return fit


@pytest.mark.parametrize("package", PACKAGES)
def test_callbacks_are_of_both_packages(package):
    for kind in (UncertaintyMonitor, UncertaintyWarmUp):
        assert issubclass(kind, PACKAGES[package].Callback)
    monitor, net = UncertaintyMonitor(table=False), MODULES[package]()
    fit_of(package, net, callbacks=[monitor, UncertaintyWarmUp(steps=3)])
    sigmas = [row["sigma/depth"] for row in monitor.history.rows]
    assert len(sigmas) == 8
    assert sigmas[:4] == [sigmas[0]] * 4  # held for three steps, whose σ the fourth still weighs with
    assert sigmas[4] != sigmas[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_module_of_the_other_package_is_lightnings_own_error(package):
    with pytest.raises(TypeError, match=r"must be a `LightningModule` .*got `Of"):
        fit_of(package, MODULES[OTHER[package]]())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_run_of_one_package_resumes_in_the_other(package, tmp_path):
    nets = [MODULES[package](), MODULES[package](), MODULES[OTHER[package]]()]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    whole, half, rest = nets
    torch.manual_seed(1)
    loader = dicts()
    histories = [UncertaintyMonitor(table=False) for _ in range(3)]

    def fit(package, net, epochs, monitor, **options):
        own = trainer(PACKAGES[package], max_epochs=epochs, callbacks=[monitor])
        own.fit(net, loader, **options)
        return own

    fit(package, whole, 4, histories[0])
    fit(package, half, 2, histories[1]).save_checkpoint(tmp_path / "half.ckpt")
    fit(OTHER[package], rest, 4, histories[2], ckpt_path=tmp_path / "half.ckpt")
    torch.testing.assert_close(tensors(rest), tensors(whole), rtol=0, atol=0)
    assert histories[2].history.rows == histories[0].history.rows


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jsonargparse's, of how Lightning calls it
@pytest.mark.parametrize("package", PACKAGES)
def test_the_command_line_fits_with_our_callbacks_and_its_checkpoints_load(package, tmp_path, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setattr("sys.argv", ["fit"])
    callbacks = [
        {"class_path": "lightning_uncertainty.UncertaintyMonitor", "init_args": {"table": False}},
        {"class_path": "lightning_uncertainty.UncertaintyWarmUp", "init_args": {"epochs": 1, "blend_from": {}}},
    ]
    line = importlib.import_module(f"{package}.cli").LightningCLI(
        MODULES[package],
        run=False,
        save_config_callback=None,
        seed_everything_default=False,
        auto_configure_optimizers=False,
        args={"trainer": {**QUIET, "callbacks": callbacks}, "model": {"width": 6}},
    )
    line.trainer.fit(line.model, dicts())
    rows = line.trainer.callbacks[0].history.rows
    assert rows[0]["weight/depth"] == 1.0
    assert len(rows) == 8
    line.trainer.save_checkpoint(tmp_path / "net.ckpt")
    again = MODULES[OTHER[package]](width=6)
    again.load_state_dict(torch.load(tmp_path / "net.ckpt", weights_only=True)["state_dict"])
    assert again.sigma() == line.model.sigma()


@pytest.mark.slow
@pytest.mark.parametrize("turn", [1, -1], ids=["ours first", "Lightning first"])
def test_one_callback_is_taken_in_either_order_of_import(turn):
    """It is given alone, as no list, to Trainers of a process that has imported nothing else."""
    lines = ["from lightning_uncertainty import UncertaintyMonitor", *(f"import {package}" for package in PACKAGES)]
    lines = [*lines[::turn], "monitor = UncertaintyMonitor()"]
    for package in PACKAGES:
        lines += [f"own = {package}.Trainer(callbacks=monitor, logger=False, accelerator='cpu')"]
        lines += ["assert monitor in own.callbacks"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", "\n".join(lines)], env=environment, check=True, timeout=120)
