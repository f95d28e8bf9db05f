"""The Tuner and BackboneFinetuning: what they do to the rates, and that they leave no trace in σ."""

import math
import warnings

import pytest
import torch
from pytorch_lightning.callbacks import BackboneFinetuning, Callback, LearningRateFinder, StochasticWeightAveraging
from pytorch_lightning.tuner import Tuner
from torch import nn

from lightning_uncertainty import UncertaintyMonitor, own_group
from tests._nets import Plain, tensors, trainer, tuples
from tests._versions import has, needs

finder = needs("pytorch-lightning", "2.5.4", "forgets what LearningRateFinder found among the callbacks")


class Tuned(Plain):
    def __init__(self):
        super().__init__()
        self.lr, self.batch_size, self.rates, self.seen = 1e-3, 4, [], []

    def training_step(self, batch, batch_idx):
        losses = self.losses(batch)
        self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        self.seen.append(losses["depth"].item())
        return self.weigh(losses)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameter_groups(lr=self.lr))

    def train_dataloader(self):
        return tuples(64, self.batch_size)

    val_dataloader = train_dataloader


def search(tuner, net):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(weights_only|LeafSpec)")
        tuner(net)


def rows_of(fit):
    """Steps and losses of the monitor's rows."""
    rows = fit.callbacks[0].history.rows
    return [row["step"] for row in rows], [row["loss/depth"] for row in rows]


def test_lr_find_searches_with_one_rate_and_leaves_no_trace_but_the_suggestion(capsys):
    net, fit = Tuned(), trainer(max_epochs=1, callbacks=[UncertaintyMonitor(table=False)])
    before = tensors(net)
    search(lambda net: Tuner(fit).lr_find(net, num_training=20, max_lr=0.1), net)
    assert all(network == own for network, own in net.rates)
    torch.testing.assert_close(tensors(net), before, rtol=0, atol=0, equal_nan=True)
    assert net.lr != 1e-3
    net.rates.clear()
    fit.fit(net)
    assert net.rates[-1] == pytest.approx([net.lr, 10 * net.lr])
    assert rows_of(fit) == (list(range(16)), pytest.approx(net.seen[-16:]))


class FineTuning(LearningRateFinder):
    """Looks for a rate once more in the middle of the fit, as Lightning's documentation has it."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


class Parts(Tuned):
    """One part of the network has a rate of its own."""

    def configure_optimizers(self):
        groups = [{"params": self.kind.parameters(), "lr": 3 * self.lr}]
        return torch.optim.SGD(self.parameter_groups(lr=self.lr, groups=groups))


class Theirs(Tuned):
    def configure_optimizers(self):
        with own_group(self.task_weighting):
            return torch.optim.SGD(self.parameters(), self.lr)


class Module(Tuned):
    """As `MultiTaskModule` does: the rate is the optimizer's own."""

    def configure_optimizers(self):
        groups = self.parameter_groups(lr=1.0)
        factors = [group.pop("lr") for group in groups]
        optimizer = torch.optim.SGD(groups, lr=self.lr)
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] *= factor
        return optimizer


class ByHand(Tuned):
    """Nobody knows that the rates should be in proportion."""

    def configure_optimizers(self):
        groups = [group | {"lr": group["lr"]} for group in self.parameter_groups(lr=self.lr)]
        return torch.optim.SGD([{key: group[key] for key in ("params", "lr")} for group in groups])


def fit_tuned(net, *callbacks, **options):
    fit = trainer(callbacks=list(callbacks), **{"max_epochs": 1, **options})
    search(lambda net: fit.fit(net), net)
    return fit


@finder
@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize(
    ("make", "ratios"), [(Tuned, [1, 10]), (Parts, [1, 3, 10]), (Theirs, [1, 10]), (Module, [1, 10])]
)
def test_a_finder_among_the_callbacks_leaves_the_groups_their_ratios(make, ratios, watched, capsys):
    """Lightning gives all groups the rate that it suggests; the first step of the fit has them in proportion."""
    net, finder = make(), LearningRateFinder(num_training_steps=20, max_lr=0.1)
    monitors = [UncertaintyMonitor(table=False)] * watched
    fit_tuned(net, *monitors, finder)
    assert net.lr != 1e-3
    assert all(len(set(rates)) == 1 for rates in net.rates[:-16])
    steps = 16 if watched else 15  # the first `weigh` restores them, if nobody did before
    assert net.rates[-steps:] == [pytest.approx([net.lr * ratio for ratio in ratios])] * steps


@finder
def test_a_finder_that_looks_again_in_the_middle_of_a_fit_does_so_too(capsys):
    net = Tuned()
    fit_tuned(net, FineTuning(num_training_steps=20, max_lr=0.1), max_epochs=2)
    assert net.rates[-15:] == [pytest.approx([net.lr, 10 * net.lr])] * 15


@finder
def test_a_ratio_that_nobody_knows_is_told_to_be_lost(capsys):
    message = "found one for all, from LearningRateFinder; build the optimizer from `self.parameter_groups"
    with pytest.warns(UserWarning, match=message):
        fit_tuned(ByHand(), LearningRateFinder(num_training_steps=20, max_lr=0.1))


@pytest.mark.parametrize("peak", [0.1, [0.01, 0.1]], ids=["one", "each"])
def test_a_schedule_with_one_rate_for_all_groups_is_told(peak):
    class Scheduled(Tuned):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=20)]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_tuned(Scheduled())
    told = [str(warning.message) for warning in caught if "found one for all" in str(warning.message)]
    assert len(told) == (peak == 0.1)
    assert all("(log_variances 10 times the network's): found one for all, from a scheduler" in one for one in told)


@pytest.mark.parametrize("rates", [0.1, [0.01, 0.1]], ids=["one", "each"])
def test_averaging_with_one_rate_for_all_groups_is_told(rates):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_tuned(Tuned(), StochasticWeightAveraging(rates, swa_epoch_start=1), max_epochs=2)
    assert sum("from StochasticWeightAveraging" in str(warning.message) for warning in caught) == (rates == 0.1)


@pytest.mark.parametrize("warm_up", [lambda step: 0.0, lambda step: 0.5])
def test_rates_that_a_schedule_scales_alike_are_as_they_should_be(warm_up):
    class Scheduled(Tuned):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up)]

    fit_tuned(Scheduled())  # -W error


@pytest.mark.parametrize(("threshold", "steps"), [(4.0, 2), (None, 16)])
def test_lr_find_takes_a_total_below_zero_for_divergence_unless_told_not_to(threshold, steps, capsys):
    """It stops where the loss exceeds four times the best, which below zero is always so; an epoch has 16 batches."""

    class Small(Tuned):
        def losses(self, batch):
            return {name: loss * 1e-3 for name, loss in super().losses(batch).items()}

    net, fit = Small(), trainer(max_epochs=1)
    search(lambda net: Tuner(fit).lr_find(net, num_training=20, early_stop_threshold=threshold), net)
    assert len(net.rates) == steps


def test_scale_batch_size_leaves_no_trace_but_the_size(capsys):
    net, fit = Tuned(), trainer(max_epochs=1, callbacks=[UncertaintyMonitor(table=False)])
    before = tensors(net)
    search(lambda net: Tuner(fit).scale_batch_size(net, max_trials=2, steps_per_trial=2), net)
    torch.testing.assert_close(tensors(net), before, rtol=0, atol=0, equal_nan=True)
    assert net.batch_size == (4 if has("pytorch-lightning", "2.6") else 8)  # doubled after its last trial too
    fit.fit(net)
    steps = 64 // net.batch_size
    assert rows_of(fit) == (list(range(steps)), pytest.approx(net.seen[-steps:]))


class Rates(Callback):
    """The rates at the end of each epoch."""

    def __init__(self):
        self.rates = []

    def on_train_epoch_end(self, trainer, net):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


class Finetuned(Plain):
    def __init__(self, thawed_only=True):
        super().__init__()
        self.backbone, self.thawed_only = nn.Linear(4, 4), thawed_only

    def losses(self, batch):
        return super().losses((self.backbone(batch[0]), *batch[1:]))

    def configure_optimizers(self):
        network, own = self.parameter_groups(lr=1e-2)
        if self.thawed_only:
            network["params"] = [parameter for parameter in network["params"] if parameter.requires_grad]
        return torch.optim.AdamW([network, own])


def finetune(net):
    watch = Rates()
    thaw = BackboneFinetuning(unfreeze_backbone_at_epoch=2, lambda_func=lambda epoch: 1.5)
    trainer(max_epochs=4, callbacks=[UncertaintyMonitor(table=False), thaw, watch]).fit(net, tuples())
    return watch.rates


def test_a_thawed_backbone_gets_its_group_and_leaves_the_log_variances_theirs():
    net = Finetuned()
    assert finetune(net) == [[0.01, 0.1]] * 2 + [[0.01, 0.1, pytest.approx(lr)] for lr in (1e-3, 1.5e-3)]
    assert all(math.isfinite(value) for value in net.sigma().values())


def test_a_frozen_backbone_that_is_in_the_optimizer_already_costs_the_log_variances_their_rate():
    """Lightning then takes the last group for the backbone's, and that is ours."""
    with pytest.warns(UserWarning, match="already exist within another group"):
        assert finetune(Finetuned(thawed_only=False))[-1] == [0.01, pytest.approx(1.5e-3)]
