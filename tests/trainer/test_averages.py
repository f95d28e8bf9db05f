"""Averages of weights: those of σ are what the callback says, and neither training nor checkpoints suffer."""

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from pytorch_lightning import LightningModule, callbacks
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, StochasticWeightAveraging
from torch import nn
from torch.optim.swa_utils import get_ema_avg_fn

from lightning_uncertainty import Task, UncertaintyMonitor, UncertaintyWeighting
from lightning_uncertainty._tensors import text_of, text_tensor
from lightning_uncertainty.likelihoods import HeteroscedasticGaussian
from lightning_uncertainty.tasks import HeteroscedasticHead
from tests._nets import Owning, Plain, dicts, trainer, tuples
from tests._versions import averages


def log_variances(net):
    weighting = net.task_weighting
    return (weighting.start + weighting.offset).detach().clone()


class Watch(Callback):
    """Keeps the log-variances that each training step leaves, and what it finds before it."""

    def __init__(self):
        self.before, self.after, self.rates = [], [], []

    def on_train_batch_start(self, trainer, net, batch, batch_idx):
        self.before.append(log_variances(net))

    def on_train_batch_end(self, trainer, net, outputs, batch, batch_idx):
        self.after.append(log_variances(net))

    def on_train_epoch_end(self, trainer, net):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def ema(values, decay):
    average = values[0]
    for value in values[1:]:
        average = decay * average + (1 - decay) * value
    return average


def mean(values):
    return torch.stack(values).mean(0)


class Burning(Owning):
    """Its depth has a σ for every element, after four steps."""

    def __init__(self):
        LightningModule.__init__(self)
        self.trunk = nn.Linear(4, 8)
        head = HeteroscedasticHead(nn.Linear(8, 1), nn.Linear(8, 1), start=1.0, burn_in=4)
        self.register_tasks(
            {"depth": Task(HeteroscedasticGaussian(), head), "kind": Task("categorical", nn.Linear(8, 3))}
        )


AVERAGES = {
    "EMA": (lambda: callbacks.EMAWeightAveraging(decay=0.8), partial(ema, decay=0.8)),
    "EMA without buffers": (
        lambda: callbacks.EMAWeightAveraging(decay=0.8, use_buffers=False),
        partial(ema, decay=0.8),
    ),
    "mean": (lambda: callbacks.WeightAveraging(), mean),
    "mean without buffers": (
        lambda: callbacks.WeightAveraging(use_buffers=False),
        mean,
    ),
    "SWA": (  # at the start of epochs 2 and 3
        lambda: StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=3, annealing_epochs=1),
        lambda values: (values[7] + values[11]) / 2,
    ),
}


@pytest.mark.filterwarnings("ignore:parameter groups should keep learning rates of their own")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[averages] * (name != "SWA")) for name in AVERAGES])
def test_a_fit_ends_with_averaged_log_variances_and_trains_with_its_own(name):
    build, average = AVERAGES[name]
    net, watch = Plain(), Watch()
    trainer(max_epochs=4, callbacks=[watch, build()]).fit(net, tuples(), tuples())
    assert len(watch.after) == 16
    torch.testing.assert_close(watch.before[1:], watch.after[:-1], rtol=0, atol=0)  # whatever validation saw
    torch.testing.assert_close(log_variances(net), average(watch.after))
    assert not torch.equal(log_variances(net), watch.after[-1])


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@averages
@pytest.mark.parametrize("name", [name for name in AVERAGES if name != "SWA"])
def test_a_checkpoint_of_averages_trains_on_and_resumes(name, tmp_path):
    build, _ = AVERAGES[name]
    best = ModelCheckpoint(tmp_path, monitor="val/balanced_loss", save_last=True)
    net, watch = Plain(), Watch()
    callbacks = [UncertaintyMonitor(table=False), build(), best, watch]
    trainer(callbacks=callbacks, enable_checkpointing=True).fit(net, tuples(), tuples())
    for module in (Plain.load_from_checkpoint(best.last_model_path), net):
        assert math.isfinite(sum(module.sigma().values()))
        trainer(max_epochs=1, callbacks=[UncertaintyMonitor(table=False)]).fit(module, tuples())
    resumed = Watch()
    again = ModelCheckpoint(tmp_path, monitor="val/balanced_loss", save_last=True)
    callbacks = [UncertaintyMonitor(table=False), build(), resumed, again]
    fit = trainer(max_epochs=3, callbacks=callbacks, enable_checkpointing=True)
    fit.fit(Plain(), tuples(), tuples(), ckpt_path=best.last_model_path)
    torch.testing.assert_close(resumed.before[0], watch.after[-1], rtol=0, atol=0)


@pytest.mark.parametrize("whole", [True, False], ids=["cut off", "float32"])
@pytest.mark.parametrize("decay", [0.9, 0.999, 0.9999])
def test_names_survive_a_long_average(decay, whole):
    """In a buffer, where an average is cut off to whole numbers, and in a checkpoint of floats."""
    names = ["depth", "größe", "深度", "𝛔"]
    rows = torch.stack([text_tensor(name) for name in names])
    mean, average = rows.clone() if whole else rows.float(), get_ema_avg_fn(decay)
    for _ in range(10_000):
        mean.copy_(average(mean, rows, 1))
    assert [text_of(row) for row in mean] == names


@averages
@pytest.mark.parametrize("average", ["EMAWeightAveraging", "WeightAveraging"])
def test_a_burn_in_ends_in_the_average_too(average):
    """An average of integers, cut off to an integer at each step, would stay at 1."""
    net, options = Burning(), {"decay": 0.6} if average == "EMAWeightAveraging" else {}
    trainer(max_epochs=4, callbacks=[getattr(callbacks, average)(**options)]).fit(net, dicts())
    assert 4 < net.task_heads["depth"].steps < 16
    log_variance = net.task_heads["depth"](torch.randn(5, 8))[:, 1]
    assert not log_variance.eq(1.0).any()


def test_swa_leaves_the_log_variances_the_rate_it_gives_to_all_or_to_each():
    for given, wanted in ((0.05, [0.05, 0.05]), ([0.05, 0.5], [0.05, 0.5])):
        watch, swa = Watch(), StochasticWeightAveraging(given, swa_epoch_start=1, annealing_epochs=1)
        told = pytest.warns(UserWarning, match="found one for all, from StochasticWeightAveraging")
        with told if given == 0.05 else nullcontext():
            trainer(max_epochs=4, callbacks=[watch, swa]).fit(Plain(), tuples())
        assert watch.rates[-1] == pytest.approx(wanted)


REMEDIES = {
    "buffers are copied": ({"use_buffers": False}, None),
    "a start is given": ({}, {"depth": 14.0}),
    "the average begins later": ({"update_starting_at_step": 1}, None),
}


@averages
@pytest.mark.parametrize("remedy", REMEDIES)
def test_a_task_without_labels_at_first_has_its_sigma_in_the_average_if(remedy):
    options, start = REMEDIES[remedy]
    batches, net, watch = dicts(128, 32), Owning(UncertaintyWeighting(start=start)), Watch()
    batches.dataset.table["depth"] *= 1000
    batches.dataset.table["depth"][:32] = torch.nan  # in the first of four batches
    trainer(max_epochs=1, callbacks=[watch, callbacks.EMAWeightAveraging(decay=0.9, **options)]).fit(net, batches)
    assert log_variances(net)[0] == pytest.approx(watch.after[-1][0].item(), abs=0.3)
    assert net.sigma()["depth"] == pytest.approx(log_variances(net)[0].div(2).exp().item(), rel=0.2)
