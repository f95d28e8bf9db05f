import copy
import pickle
import sys
import warnings
from contextlib import nullcontext

import lightning.pytorch
import pytest
import torch
import yaml
from pytorch_lightning import Callback
from pytorch_lightning.cli import LightningCLI

from lightning_uncertainty import AdoptLosses, UncertaintyMonitor, UncertaintyWeighting, adopt
from tests._nets import trainer
from tests.adoption._hosts import PARTS, TASKS, Host, rows, seeded
from tests.adoption.test_adopting import Loader, Other

LOG = PARTS["log"]


@pytest.mark.parametrize("before", [True, False])
def test_it_adopts_before_the_optimizers_are_built_and_once(before):
    own = [AdoptLosses(TASKS, LOG, UncertaintyWeighting()), UncertaintyMonitor(table=False)]
    host = seeded(Host)
    for steps in (4, 8):
        fitted = trainer(max_epochs=steps // 4, callbacks=own if before else own[::-1])
        fitted.fit(host, Loader(rows()))
        (optimizer,) = fitted.optimizers
        assert [group.get("name") for group in optimizer.param_groups] == [None, "log_variances"]
        assert len(own[1].history.rows) == steps
    by_hand = adopt(seeded(Host), TASKS, LOG, weighting=UncertaintyWeighting())
    assert type(by_hand) is type(host)


def test_it_works_in_both_namespaces():
    host, monitor = Other(), UncertaintyMonitor(table=False)
    trainer(lightning.pytorch, callbacks=[monitor, AdoptLosses(TASKS, LOG)]).fit(host, Loader(rows()))
    assert len(monitor.history.rows) == 8


class Late(Callback):
    def on_train_start(self, trainer, pl_module):
        trainer.callbacks.append(AdoptLosses(TASKS, LOG))


def test_one_that_comes_when_the_optimizers_are_there_is_told():
    host = Host().double()
    with pytest.raises(RuntimeError, match="AdoptLosses should be among the Trainer's callbacks before a fit begins"):
        trainer(callbacks=[Late()]).fit(host, Loader(rows()))
    assert type(host) is Host


@pytest.mark.parametrize("method", ["ddp_spawn", "ddp_fork", "ddp", "auto"])
def test_a_fit_in_processes_that_come_back_without_sigma_is_told(method):
    adoption = AdoptLosses(TASKS, LOG)
    fits = trainer(strategy=method, devices=1 if method == "auto" else 2)
    told = pytest.warns(UserWarning, match=r"found one that is adopted in these alone, .*; call adopt\(module, ...\)")
    with told if method in ("ddp_spawn", "ddp_fork") else nullcontext():
        adoption.setup(fits, Host(), "fit")
    adoption.setup(fits, adopt(Host(), TASKS, LOG), "fit")
    adoption.setup(fits, Host(), "validate")


def test_it_is_pickled_before_and_after_a_fit():
    adoption = pickle.loads(pickle.dumps(AdoptLosses(TASKS, LOG, UncertaintyWeighting())))
    host = seeded(Host)
    trainer(callbacks=[adoption]).fit(host, Loader(rows()))
    again = pickle.loads(pickle.dumps(adoption))
    trainer(callbacks=[again]).fit(host, Loader(rows()))


CONFIG = {
    "trainer": {
        "callbacks": [
            {
                "class_path": "lightning_uncertainty.AdoptLosses",
                "init_args": {
                    "tasks": TASKS,
                    "parts": LOG,
                    "weighting": {"class_path": "lightning_uncertainty.AnalyticUncertaintyWeighting"},
                    "count": "tests.adoption.test_adopting.labels",
                    "divisor": "tests.adoption.test_adopting.labels",
                    "may_be_absent": "height",
                    "validation": {"depth": "log:val_depth"},
                    "shared": ["trunk"],
                },
            },
            {"class_path": "lightning_uncertainty.UncertaintyMonitor"},
        ],
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
        "precision": "64-true",
        "max_epochs": 1,
        "accelerator": "cpu",
    },
}


class Data(lightning.pytorch.LightningDataModule):
    def train_dataloader(self):
        return Loader(rows())


def command_line(tmp_path, monkeypatch, config, *arguments):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", str(tmp_path / "config.yaml"), *arguments])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    from pytorch_lightning import LightningDataModule

    class OwnData(LightningDataModule):
        def train_dataloader(self):
            return Loader(rows())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LightningCLI(Host, OwnData, save_config_callback=None)


def test_a_projects_own_command_line_needs_no_code(tmp_path, monkeypatch):
    cli = command_line(tmp_path, monkeypatch, CONFIG)
    assert all(value > 0 for value in cli.model.sigma().values())


def of(kind, *given):
    return {"class_path": f"lightning_uncertainty.adoption.{kind}", "init_args": dict([given])}


@pytest.mark.parametrize(
    "options",
    [
        {"parts": of("HostWeight", "path", "vector"), "may_be_absent": "height"},
        {"parts": "weight:vector", "may_be_absent": ["depth", "height"]},
        {"parts": {"depth": of("Logged", "key", "depth_loss"), "height": of("HostWeight", "path", "scale.value")}},
        {"parts": of("HostWeight", "path", "scale.value"), "tasks": {"height": "gaussian"}, "rest": "plain"},
        {"parts": "weight:scale.value", "tasks": {"height": "gaussian"}, "rest": "plain"},
        {"validation": {"depth": of("Logged", "key", "val_depth")}, "shared": "trunk"},
    ],
)
def test_yaml_says_what_adopt_takes(tmp_path, monkeypatch, options):
    given = copy.deepcopy(CONFIG)
    (mine, monitor) = given["trainer"]["callbacks"]
    kept = ["tasks", "parts"]
    mine["init_args"] = {**{name: mine["init_args"][name] for name in kept}, **options}
    monitor["init_args"] = {"table": False}
    cli = command_line(tmp_path, monkeypatch, {**given, "model": {"buffer": True}})
    assert all(value > 0 for value in cli.model.sigma().values())
    parts = dict(cli.model._adoption.options.parts)
    assert all(str(part).startswith(("weight:", "log:")) for part in parts.values())


def test_an_optimizer_of_the_command_line_takes_no_log_variances(tmp_path, monkeypatch):
    callbacks = [
        {
            "class_path": "lightning_uncertainty.AdoptLosses",
            "init_args": {
                "tasks": TASKS,
                "parts": LOG,
                "weighting": {"class_path": "lightning_uncertainty.UncertaintyWeighting"},
            },
        }
    ]
    config = {"trainer": {**CONFIG["trainer"], "callbacks": callbacks}}
    with pytest.raises(RuntimeError, match=r"as command lines put there"):
        command_line(tmp_path, monkeypatch, config, "--optimizer=torch.optim.SGD", "--optimizer.lr=0.1")
    callbacks[0]["init_args"].pop("weighting")
    cli = command_line(tmp_path, monkeypatch, config, "--optimizer=torch.optim.SGD", "--optimizer.lr=0.1")
    assert isinstance(cli.trainer.optimizers[0], torch.optim.SGD)
