"""pytorch-forecasting's MultiLoss: two series at once, of scales a thousandfold apart."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import pytorch as pl
from pytorch_forecasting import MAE, MultiLoss, RecurrentNetwork, TimeSeriesDataSet
from pytorch_forecasting.data import MultiNormalizer, TorchNormalizer
from torch.utils.data import DataLoader

from lightning_uncertainty import AdoptLosses, UncertaintyMonitor, adopt
from tests._launch import RANKS
from tests.hosts._fits import (
    QUIET,
    check_gradients,
    check_resumed,
    check_rows,
    first_gradients,
    weighted_sum,
    weighting_of,
)

TASKS = ("level", "volume")
PROGRAM = "tests.hosts.test_pytorch_forecasting"

# what a user writes
GIVEN = {"tasks": {"level": "laplace", "volume": "laplace"}, "parts": "weight:loss.weights"}
BY_CALL = {"level": "call:loss.metrics[0]", "volume": "call:loss.metrics[1]"}


def series():
    rng = np.random.default_rng(0)
    time = np.arange(40)
    frames = [
        pd.DataFrame(
            {
                "time": time,
                "group": str(group),
                "level": np.sin(time / 5 + group) + rng.laplace(0, 0.2, 40),
                "volume": 1000 * np.cos(time / 7 + group) + rng.laplace(0, 300, 40),
            }
        )
        for group in range(8)
    ]
    unscaled = MultiNormalizer([TorchNormalizer(method="identity"), TorchNormalizer(method="identity")])
    return TimeSeriesDataSet(
        pd.concat(frames, ignore_index=True),
        time_idx="time",
        target=list(TASKS),
        group_ids=["group"],
        max_encoder_length=8,
        max_prediction_length=3,
        time_varying_known_reals=["time"],
        time_varying_unknown_reals=list(TASKS),
        target_normalizer=unscaled,
    )


@pytest.fixture(scope="module")
def batches():
    """The same windows in the same order, every epoch."""
    return windows()


def in_order():
    return series().to_dataloader(train=False, batch_size=60, num_workers=0)


def windows(count=None, rank=None):
    batches = list(in_order())[:count]
    return DataLoader(batches if rank is None else [half(batch, rank) for batch in batches], batch_size=None)


def make(weights=(1.0, 1.0), **options):
    torch.manual_seed(0)
    loss = MultiLoss([MAE(), MAE()], weights=list(weights))
    given = {"hidden_size": 16, "learning_rate": 1e-2, "log_interval": -1, "optimizer": "adam", "dropout": 0.0}
    return RecurrentNetwork.from_dataset(series(), loss=loss, **{**given, **options})


def residuals(net, batches):
    """The MAE of every target over all horizons, as in training: in evaluation it goes on from its own predictions."""
    net.train()
    with torch.no_grad():
        pairs = [(net(x)["prediction"], y[0]) for x, y in batches]
    errors = [torch.cat([made[i][..., 0] - target[i] for made, target in pairs]) for i in range(len(TASKS))]
    return {task: error.abs().mean().item() for task, error in zip(TASKS, errors, strict=True)}


def predictions(net):
    return net.predict(in_order(), trainer_kwargs={"accelerator": "cpu", "enable_progress_bar": False, "logger": False})


@pytest.mark.parametrize(("weights", "parts"), [((1.0, 1.0), GIVEN["parts"]), ((20.0, 0.5), BY_CALL)])
def test_sigma_is_the_residual_in_label_units(weights, parts, batches):
    """In a second fit, at a rate at which it comes to rest."""
    net, monitor = adopt(make(weights), GIVEN["tasks"], parts), UncertaintyMonitor(table=False)
    pl.Trainer(**QUIET, max_epochs=60).fit(net, batches)
    net.hparams.learning_rate = 1e-5
    pl.Trainer(**QUIET, max_epochs=40, callbacks=[monitor]).fit(net, batches)
    last, found = check_rows(monitor, set(TASKS), set(TASKS)), residuals(net, batches)
    print({task: (last[f"sigma/{task}"] / math.sqrt(2), found[task]) for task in TASKS})
    assert {task: last[f"sigma/{task}"] / math.sqrt(2) for task in TASKS} == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("parts", [GIVEN["parts"], BY_CALL])
def test_gradients_are_those_of_a_weighting_by_hand(parts, batches):
    """The host alone, with one weight of 1 and others of 0, gives each loss's gradient."""
    alone = {task: first_gradients(pl, make([float(other == task) for other in TASKS]), batches) for task in TASKS}
    by_hand = {task: 1 / error for task, error in residuals(make(), windows(1)).items()}
    found = first_gradients(pl, adopt(make((3.0, 0.5)), GIVEN["tasks"], parts), batches)
    check_gradients(found, weighted_sum(alone, by_hand))


@pytest.mark.parametrize("learnt", [False, True])
def test_a_resumed_fit_equals_one_that_never_stopped_and_its_checkpoint_is_the_hosts(learnt, tmp_path, batches):
    path = check_resumed(pl, lambda: adopt(make(), **GIVEN, weighting=weighting_of(learnt)), batches, tmp_path)
    net = RecurrentNetwork.load_from_checkpoint(path, weights_only=False)
    assert type(net) is RecurrentNetwork
    made = predictions(net)
    assert [tuple(each.shape) for each in made] == [(sum(len(x["groups"]) for x, _ in batches), 3)] * 2


def test_an_adopted_network_predicts_and_validates_as_ever(batches):
    """And the callback adopts as the function does."""
    nets = [make(), make()]
    adoption = AdoptLosses(GIVEN["tasks"], GIVEN["parts"])
    pl.Trainer(**QUIET, max_epochs=2, callbacks=[adoption]).fit(nets[0], batches, windows(1))
    pl.Trainer(**QUIET, max_epochs=2).fit(adopt(nets[1], **GIVEN), batches)
    assert nets[0].sigma() == nets[1].sigma()
    assert type(nets[0]).__name__ == "RecurrentNetwork"
    assert nets[0].trainer.callback_metrics["val_loss"] > 0
    made = predictions(nets[0])
    assert torch.equal(made[0], predictions(nets[1])[0])


def test_losses_of_validation_stand_beside_the_hosts(batches):
    net = adopt(make(), **GIVEN, validation=BY_CALL)
    fitted = pl.Trainer(**QUIET, max_epochs=1)
    fitted.fit(net, batches, in_order())
    found = {key: value.item() for key, value in fitted.callback_metrics.items()}
    for task in TASKS:
        assert found[f"val/{task}/loss"] == pytest.approx(found[f"{task} val_MAE"], rel=1e-5)
    assert math.isfinite(found["val/balanced_loss"])


# -- two processes -----------------------------------------------------------------------------------------------------


def half(value, rank):
    """Return a rank's half of the rows of a batch."""
    if isinstance(value, torch.Tensor):
        return value[rank::RANKS]
    if isinstance(value, dict):
        return {key: half(each, rank) for key, each in value.items()}
    return None if value is None else type(value)(half(each, rank) for each in value)


def run(cells):
    rank = torch.distributed.get_rank()
    net = adopt(make(), **GIVEN)
    options = {"strategy": "ddp", "devices": RANKS, "use_distributed_sampler": False}
    pl.Trainer(**QUIET, max_epochs=3, **options).fit(net, windows(3, rank))
    return {"state": {"state": net.state_dict(), "sigma": net.sigma()}}


@pytest.mark.cells(PROGRAM, "state")
def test_two_processes_train_as_one(found):
    net = adopt(make(), **GIVEN)
    pl.Trainer(**QUIET, max_epochs=3).fit(net, windows(3))
    for rank in range(RANKS):
        other = found("state", rank=rank)
        assert other["sigma"] == pytest.approx(net.sigma(), rel=1e-4)
        for name, value in net.state_dict().items():
            assert torch.allclose(other["state"][name], value, rtol=1e-3, atol=1e-4), name
