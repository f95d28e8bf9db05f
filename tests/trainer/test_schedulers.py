"""Every scheduler of torch over `parameter_groups`, and the names that LearningRateMonitor gives them."""

import inspect
import warnings
from functools import partial

import pytest
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers.logger import DummyLogger
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from lightning_uncertainty import UncertaintyMonitor
from tests._nets import Plain, trainer, tuples

STEPS = 8


def sequential(optimizer):
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 2), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])


def chained(optimizer):
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.ChainedScheduler(parts)


def per_group(kind, rates, **options):
    """Give a scheduler whose rates are absolute those of each group."""

    def build(optimizer):
        peaks = [group["lr"] for group in optimizer.param_groups]
        return kind(optimizer, **{name: [factor * peak for peak in peaks] for name, factor in rates.items()}, **options)

    return build


SCHEDULERS = {
    "LambdaLR": partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.9**step),
    "MultiplicativeLR": partial(lr_scheduler.MultiplicativeLR, lr_lambda=lambda step: 0.9),
    "StepLR": partial(lr_scheduler.StepLR, step_size=2),
    "MultiStepLR": partial(lr_scheduler.MultiStepLR, milestones=[2, 5]),
    "ConstantLR": partial(lr_scheduler.ConstantLR, factor=0.5, total_iters=3),
    "LinearLR": partial(lr_scheduler.LinearLR, start_factor=0.1, total_iters=5),
    "ExponentialLR": partial(lr_scheduler.ExponentialLR, gamma=0.8),
    "PolynomialLR": partial(lr_scheduler.PolynomialLR, total_iters=6, power=2),
    "CosineAnnealingLR": partial(lr_scheduler.CosineAnnealingLR, T_max=9),
    "CosineAnnealingWarmRestarts": partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=3),
    "SequentialLR": sequential,
    "ChainedScheduler": chained,
    "ReduceLROnPlateau": partial(lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.5, mode="max", threshold=1e6),
    "CyclicLR": per_group(lr_scheduler.CyclicLR, {"base_lr": 0.1, "max_lr": 1.0}, step_size_up=3),
    "OneCycleLR": per_group(lr_scheduler.OneCycleLR, {"max_lr": 1.0}, total_steps=STEPS + 1),
    "SWALR": per_group(SWALR, {"swa_lr": 0.1}, anneal_epochs=4),
}
ABSOLUTE = {
    "CyclicLR": partial(lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=3),
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=STEPS + 1),
}


def rates_of(build, groups=Plain.parameter_groups):
    """Fit for 8 steps, the scheduler stepped in each; return the rates by LearningRateMonitor's names."""

    class Net(Plain):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(groups(self, lr=0.01), momentum=0.9)
            scheduler = {"scheduler": build(optimizer), "interval": "step", "monitor": "weight/depth"}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    rates = LearningRateMonitor("step")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The epoch parameter")  # SequentialLR's own
        trainer(callbacks=[UncertaintyMonitor(table=False), rates], logger=DummyLogger()).fit(Net(), tuples())
    return rates.lrs


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_moves_both_rates_alike(name):
    rates = rates_of(SCHEDULERS[name])
    alone = rates_of(SCHEDULERS[name], groups=lambda net, lr: [{"params": net.parameters(), "lr": lr}])
    assert list(rates) == ["lr-SGD/pg1", "lr-SGD/log_variances"]
    assert len(set(rates["lr-SGD/pg1"])) > 1
    assert rates["lr-SGD/pg1"] == pytest.approx(alone["lr-SGD"])
    assert rates["lr-SGD/log_variances"] == pytest.approx([10 * lr for lr in rates["lr-SGD/pg1"]])


@pytest.mark.parametrize("name", ABSOLUTE)
def test_an_absolute_rate_given_once_is_that_of_both(name):
    with pytest.warns(UserWarning, match="found one for all, from a scheduler; give it a rate for each group"):
        rates = rates_of(ABSOLUTE[name])
    assert rates["lr-SGD/log_variances"] == pytest.approx(rates["lr-SGD/pg1"])


def test_no_scheduler_of_torch_is_left_out():
    kinds = {
        name for name, kind in vars(lr_scheduler).items() if inspect.isclass(kind) and hasattr(kind, "get_last_lr")
    }
    assert kinds - {"LRScheduler", "_LRScheduler"} == set(SCHEDULERS) - {"SWALR"}  # of a module of its own


def test_a_list_for_one_group_is_torchs_own_error():
    with pytest.raises(ValueError, match="Expected 2 lr_lambdas, but got 1"):
        lr_scheduler.LambdaLR(torch.optim.SGD(Plain().parameter_groups(lr=0.1)), [lambda step: 1.0])


@pytest.mark.parametrize(("mode", "reduced"), [("rel", False), ("abs", True)])
def test_a_plateau_below_zero_is_one_only_with_an_absolute_threshold(mode, reduced):
    """Torch compares with best · (1 - 1e-4), which lies above a best that is negative; our losses are logs."""

    class Net(Plain):
        def losses(self, batch):
            return {"depth": self.depth.weight.square().mean() * 0 + 0.01, "kind": self.kind.weight.sum() * 0 + 0.1}

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameter_groups(lr=0.01))
            plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold_mode=mode)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/balanced_loss"}}

    fit = trainer(max_epochs=3)
    fit.fit(Net(), tuples(), tuples())
    assert fit.callback_metrics["val/balanced_loss"] < -3
    network, own = (group["lr"] for group in fit.optimizers[0].param_groups)
    assert (network < 0.01) == reduced
    assert own == pytest.approx(10 * network)
