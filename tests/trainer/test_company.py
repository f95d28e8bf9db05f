"""Other callbacks and arguments of the Trainer: each does its work beside the weighting, and σ is right after it."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import (
    Callback,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    ModelPruning,
    Timer,
)
from pytorch_lightning.loggers import CSVLogger

from lightning_uncertainty import UncertaintyMonitor, UncertaintyWeighting
from tests._nets import Plain, tensors, trainer, tuples
from tests._versions import has

REGISTRY = {"model_registry": None} if has("pytorch-lightning", "2.5.1") else {}


class Stepwise(Plain):
    """Plain under SGD, which has no state: a fit that goes on from another is one longer fit."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameter_groups(lr=0.01))


def copy_of(net):
    other = type(net)()
    other.load_state_dict(net.state_dict())
    return other


def bare_loop(net, batches):
    """Train without a Trainer."""
    optimizer = net.configure_optimizers()
    for batch in batches:
        optimizer.zero_grad()
        net.training_step(batch, 0).backward()
        optimizer.step()
    return net


# -- arguments of the Trainer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({"overfit_batches": 1}, [0, 0]),
        ({"limit_train_batches": 2}, [0, 1, 0, 1]),
        ({"limit_train_batches": 0.75}, [0, 1, 2, 0, 1, 2]),
        ({"max_steps": 5}, [0, 1, 2, 3, 0]),
        ({"fast_dev_run": 3}, [0, 1, 2]),
        ({"inference_mode": False}, [0, 1, 2, 3] * 2),
        ({"detect_anomaly": True}, [0, 1, 2, 3] * 2),
        ({"profiler": "simple"}, [0, 1, 2, 3] * 2),
        ({"reload_dataloaders_every_n_epochs": 1}, [0, 1, 2, 3] * 2),
        ({"val_check_interval": 2}, [0, 1, 2, 3] * 2),
        ({"val_check_interval": 3, "check_val_every_n_epoch": None}, [0, 1, 2, 3] * 2),
        ({"check_val_every_n_epoch": 2, "num_sanity_val_steps": -1}, [0, 1, 2, 3] * 2),
        ({"max_time": "00:01:00:00", "min_epochs": 1}, [0, 1, 2, 3] * 2),
        ({"deterministic": True, "benchmark": False}, [0, 1, 2, 3] * 2),
        ({"use_distributed_sampler": False, **REGISTRY}, [0, 1, 2, 3] * 2),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_a_fit_trains_on_its_batches_and_leaves_a_row_for_each(options, batches, capsys):
    loader, net, monitor = tuples(), Stepwise(), UncertaintyMonitor(table=False)
    dealt, other = list(loader), copy_of(net)
    fit = trainer(**{"callbacks": [monitor], **options})
    fit.fit(net, loader, loader)
    assert fit.global_step == len(batches) == len(monitor.history.rows)
    bare_loop(other, [dealt[index] for index in batches])
    torch.testing.assert_close(tensors(net), tensors(other))
    assert net.sigma() == pytest.approx(other.sigma())
    assert ("val/balanced_loss" in fit.callback_metrics) == (fit.num_val_batches != [] and fit.enable_validation)


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["val/depth/loss", "val/balanced_loss", "sigma/depth", "sigma_gap/kind", "loss_share/kind"]
)
def test_early_stopping_and_checkpoints_follow_any_of_our_keys(key, tmp_path):
    stop = EarlyStopping(key, patience=0, min_delta=1e9, mode="min")
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor=key, mode="max", save_top_k=1)
    values = []

    class Values(Callback):
        def on_validation_end(self, trainer, net):
            values.append(trainer.callback_metrics[key].item())

    callbacks = [UncertaintyMonitor(table=False), Values(), best]
    trainer(max_epochs=4, callbacks=callbacks, enable_checkpointing=True, num_sanity_val_steps=0).fit(
        Plain(), tuples(), tuples()
    )
    assert len(values) == 4
    assert best.best_model_score == pytest.approx(max(values))
    assert best.best_model_path.endswith(f"epoch={values.index(max(values))}.ckpt")
    stopped = trainer(max_epochs=9, callbacks=[UncertaintyMonitor(table=False), stop])
    stopped.fit(Plain(), tuples(), tuples())
    assert stopped.current_epoch == 2  # nothing is better by 1e9


# -- other callbacks ---------------------------------------------------------------------------------------------------


def test_pruning_takes_the_network_alone():
    net = Plain()
    trainer(callbacks=[ModelPruning("l1_unstructured", amount=0.5)]).fit(net, tuples())
    assert (net.kind.weight == 0).sum() > 0
    assert net.task_weighting.offset.count_nonzero() == 2


def test_accumulation_by_schedule_and_a_timer_beside_the_monitor():
    monitor = UncertaintyMonitor(table=False)
    callbacks = [monitor, GradientAccumulationScheduler({0: 1, 1: 2}), Timer("00:01:00:00")]
    fit = trainer(max_epochs=3, callbacks=callbacks)
    fit.fit(Plain(), tuples())
    assert fit.global_step == len(monitor.history.rows) == 4 + 2 + 2


def test_device_stats_are_logged_beside_ours(tmp_path):
    callbacks = [DeviceStatsMonitor(cpu_stats=True), UncertaintyMonitor(table=False)]
    logger = CSVLogger(tmp_path)
    trainer(max_epochs=1, callbacks=callbacks, logger=logger).fit(Plain(), tuples())
    columns = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"sigma/depth", "loss/kind"} < set(columns)
    assert any(column.startswith("DeviceStatsMonitor") for column in columns)


# -- several fits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("watched", [(False, False), (True, True), (True, False), (False, True)])
@pytest.mark.parametrize("between", [lambda net: net, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_second_fit_goes_on_from_the_first(watched, between):
    net, loader = Stepwise(), tuples()
    other = copy_of(net)
    for watch in watched:
        monitors = [UncertaintyMonitor(table=False)] if watch else []
        trainer(callbacks=monitors).fit(net, loader, loader)
        assert all([row["step"] for row in monitor.history.rows] == list(range(8)) for monitor in monitors)
        net = between(net)
    bare_loop(other, list(loader) * 4)
    torch.testing.assert_close(tensors(net), tensors(other))


def test_one_monitor_over_two_fits_of_one_trainer_has_one_history():
    net, monitor = Stepwise(UncertaintyWeighting(start=0.0)), UncertaintyMonitor(table=False)
    fit = trainer(callbacks=[monitor])
    fit.fit(net, tuples())
    fit.fit_loop.max_epochs = 4
    fit.fit(net, tuples())
    assert [row["step"] for row in monitor.history.rows] == list(range(16))
