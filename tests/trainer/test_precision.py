"""Under every precision of the Trainer σ, weights and totals stay float32 and are those of 32-true."""

import math
from functools import cache, partial
from itertools import pairwise

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader

from lightning_uncertainty import FixedWeighting, MultiTaskMixin, UncertaintyMonitor, UncertaintyWeighting
from lightning_uncertainty.weightings import BoundedUncertaintyWeighting, ConstrainedUncertaintyWeighting
from tests._nets import Owning, in_a_row, trainer
from tests._tiers import few
from tests.trainer._weightings import BALANCING, WEIGHTINGS

TOLERANCES = {  # of every loss, σ and weight in a fit, relative to those of 32-true
    "32-true": 0.0,
    "64-true": 1e-6,
    "bf16-mixed": 5e-3,
    "16-mixed": 5e-4,
    "bf16-true": 2e-2,
    "16-true": 2e-3,
}
STEPS = 40
SLOW = 2e-4  # a learning rate of log-variances

each_precision = pytest.mark.parametrize("precision", few(TOLERANCES, ("16-mixed", "bf16-true")))
each_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS)


def under(precision, scale=2.0**8):
    """A Trainer's options; 16-mixed is real float16 with a GradScaler, for which Lightning puts bfloat16 on a CPU."""
    if precision != "16-mixed":
        return {"precision": precision}
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


class Net(Owning):
    """Owning with batches of its own; `optimizer` takes parameter groups."""

    def __init__(self, weighting, optimizer=SGD, log_variance_lr=1e-2):
        super().__init__(weighting)
        self.optimizer, self.log_variance_lr = optimizer, log_variance_lr

    def train_dataloader(self):
        return in_a_row(STEPS)

    def configure_optimizers(self):
        return self.optimizer(self.parameter_groups(lr=1e-2, log_variance_lr=self.log_variance_lr))


class Watch(Callback):
    """Keeps the totals."""

    def __init__(self):
        self.totals = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.totals.append(outputs["loss"])


def fit(net, precision, *callbacks, **options):
    """Train; return the network, the monitor's rows and the totals."""
    watch, monitor = Watch(), UncertaintyMonitor(table=False)
    every = [monitor, watch, *callbacks]
    trainer(max_epochs=1, callbacks=every, log_every_n_steps=1, **under(precision, **options)).fit(net)
    return net, monitor.history.rows, watch.totals


@cache
def fit_weighting(precision, weighting):
    torch.manual_seed(0)
    return fit(Net(WEIGHTINGS[weighting]()), precision)


@each_weighting
@each_precision
def test_it_trains_as_in_float32(precision, weighting):
    """Row for row; a network in half precision has other losses, which σ and weights follow."""
    net, rows, totals = fit_weighting(precision, weighting)
    wide = torch.float64 if precision == "64-true" else torch.float32
    assert net.task_weighting.dtypes() == {wide}
    assert {total.dtype for total in totals} == {wide}
    half = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
    assert net.trunk.weight.dtype is half.get(precision, wide)
    _, expected, _ = fit_weighting("32-true", weighting)
    assert len(rows) == len(expected) == STEPS
    keys = [key for key in expected[0] if key.startswith(("loss/", "sigma/", "weight/"))]
    gaps = [abs(row[key] / other[key] - 1) for row, other in zip(rows, expected, strict=True) for key in keys]
    assert max(gaps) <= TOLERANCES[precision] * (4 if weighting in BALANCING else 1)  # weights follow gradients, too


STARTED = {
    "UncertaintyWeighting": lambda: UncertaintyWeighting(start=2.0),
    "BoundedUncertaintyWeighting": lambda: BoundedUncertaintyWeighting(start=2.0),
    "ConstrainedUncertaintyWeighting": lambda: ConstrainedUncertaintyWeighting(mean_log_variance=2.0, start=2.0),
}


@cache
def fit_started(precision, weighting):
    torch.manual_seed(0)
    return fit(Net(STARTED[weighting](), partial(Adam, eps=1e-4), SLOW), precision)[0]


@pytest.mark.parametrize("weighting", STARTED)
@each_precision
def test_log_variances_move_where_those_in_half_precision_stay(precision, weighting):
    """In 40 steps from 2 they move by as much as 0.008."""
    assert all(torch.tensor(2.0, dtype=half) - SLOW == 2.0 for half in (torch.bfloat16, torch.float16))
    net = fit_started(precision, weighting)
    moments = net.trainer.optimizers[0].state[net.task_weighting.offset]
    assert moments["exp_avg"].dtype is moments["exp_avg_sq"].dtype is net.task_weighting.offset.dtype
    moved = (net.task_weighting.log_variance - 2.0).double()
    assert moved.abs().max() > 20 * SLOW
    expected = (fit_started("32-true", weighting).task_weighting.log_variance - 2.0).double()
    torch.testing.assert_close(moved, expected, rtol=0.0, atol=3e-4)


@each_precision
def test_tasks_that_share_s_share_it_in_float32(precision):
    """It is a matrix product, which autocast would round: 2.003 to 2."""
    shared = ["depth", "e0"]
    _, rows, _ = fit(Sizes(UncertaintyWeighting(dict.fromkeys(shared, 2.003), shared=[shared])), precision)
    assert rows[0]["sigma/depth"] == rows[0]["sigma/e0"] == pytest.approx(math.exp(2.003 / 2), rel=1e-6)


# -- sizes of losses ---------------------------------------------------------------------------------------------------


class Sizes(MultiTaskMixin, LightningModule):
    """Losses of all sizes that float32 knows well, in one model."""

    def __init__(self, weighting):
        super().__init__()
        self.sizes = {f"e{exponent}".replace("-", "_"): 10.0**exponent for exponent in range(-12, 13, 4)}
        self.trunk, self.depth = nn.Linear(4, 8), nn.Linear(8, len(self.sizes) + 1)
        kinds = ["gaussian", "laplace", "categorical"]
        tasks = {name: kinds[i % 3] for i, name in enumerate(self.sizes)}
        self.register_tasks({**tasks, "depth": "gaussian"}, weighting=weighting)
        self.found = []

    def training_step(self, batch, batch_idx):
        features = self.split_features(self.trunk(batch).tanh())
        sizes = {**self.sizes, "depth": 1.0}
        outputs = {name: self.depth(features[name]).float()[:, i] for i, name in enumerate(sizes)}
        return self.weigh({name: (outputs[name] - 1).square().mean() * size for name, size in sizes.items()})

    def on_before_optimizer_step(self, optimizer):
        self.found += [parameter.grad for parameter in self.parameters()]

    def train_dataloader(self):
        return DataLoader([torch.randn(16, 4) for _ in range(6)], batch_size=None)

    def configure_optimizers(self):
        return Adam(self.parameter_groups(lr=1e-3), eps=1e-4)


UNSCALED = ["FixedWeighting", "RandomLossWeighting", "DynamicWeightAverage", "DynamicTaskPrioritization", "GradNorm"]
OVERFLOW = {(half, name) for half in ("16-mixed", "16-true") for name in UNSCALED}  # 1e5 times an error is inf there


@pytest.mark.parametrize(
    ("precision", "weighting"),
    sorted({(each, weighting) for each in TOLERANCES for weighting in WEIGHTINGS} - OVERFLOW),
)
@pytest.mark.filterwarnings("ignore:SoftOptimalUncertaintyWeighting should share")
def test_losses_from_1e_12_to_1e12_leave_everything_finite(precision, weighting):
    net, rows, totals = fit(Sizes(WEIGHTINGS[weighting]()), precision)
    assert len(rows) == len(totals) == 6
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(tensor.isfinite().all() for tensor in [*totals, *net.found, *net.parameters()])
    for row in rows if weighting == "UncertaintyWeighting" else []:
        for name in ("e_12", "e12"):
            assert row[f"sigma/{name}"] == pytest.approx(math.sqrt(row[f"loss/{name}"]), rel=0.1)


# -- float16 with a GradScaler -----------------------------------------------------------------------------------------


class Gradients(Callback):
    """Keeps the gradient of the log-variances as backward left it, and as the optimizer gets it."""

    def __init__(self):
        self.scaled, self.unscaled, self.scales = [], [], []

    def on_after_backward(self, trainer, pl_module):
        self.scaled.append(pl_module.task_weighting.offset.grad.clone())
        self.scales.append(trainer.scaler.get_scale())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.unscaled.append(pl_module.task_weighting.offset.grad.clone())


def test_a_grad_scaler_scales_the_gradient_of_s_and_takes_the_scale_out_again():
    """d total / d s = r - a c e^{-a s} L, as published, is of the unscaled loss; the scale grows every ten steps."""
    watch = Gradients()
    _, rows, totals = fit(Net(UncertaintyWeighting(start=0.5, memory=None)), "16-mixed", watch)
    assert watch.scales[0] == 2.0**8
    assert watch.scales[-1] == 2.0**11
    assert [total.dtype for total in totals] == [torch.float32] * STEPS
    for step, row in enumerate(rows):
        weighted = torch.tensor([row[f"weight/{name}"] * row[f"loss/{name}"] for name in ("depth", "kind")])
        torch.testing.assert_close(watch.scaled[step], watch.scales[step] * (0.5 - weighted), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(watch.unscaled[step], 0.5 - weighted, rtol=1e-4, atol=1e-5)
        s = 2 * torch.tensor([row["sigma/depth"], row["sigma/kind"]]).log()
        torch.testing.assert_close(totals[step], weighted.sum() + 0.5 * s.sum(), rtol=1e-4, atol=1e-4)


def test_steps_that_a_grad_scaler_drops_leave_log_variances_alone():
    """At 2^30 the network's gradient is infinite in float16: the scale is halved until it is not."""
    watch = Gradients()
    _, rows, totals = fit(Net(UncertaintyWeighting(start=0.5)), "16-mixed", watch, scale=2.0**30)
    dropped = [later < scale for scale, later in pairwise(watch.scales)]
    assert 5 < sum(dropped) < 20
    assert [row["sigma/depth"] == later["sigma/depth"] for row, later in pairwise(rows)] == dropped
    assert all(total.isfinite() for total in totals)


# -- counts ------------------------------------------------------------------------------------------------------------


class Counted(Net):
    """Sums with counts that float16 does not have, as Python numbers."""

    def training_step(self, batch, batch_idx):
        loss = self.task_heads["kind"](self.trunk(batch["x"])).float().square().mean()
        return self.weigh({"depth": (loss * 0 + 8194.0, 4097.0), "kind": (loss * 0 + 210_000.0, 70_000)})


def test_adams_epsilon_is_zero_in_float16():
    """The network is NaN after a step, and the next one says so; 1e-7 is the least that float16 has."""
    with pytest.raises(ValueError, match="loss of task 'depth' should be finite and at least 0: found nan"):
        fit(Net(FixedWeighting(), Adam), "16-true")
    assert torch.tensor(1e-7, dtype=torch.float16) > 0
    fit(Net(FixedWeighting(), partial(Adam, eps=1e-7)), "16-true")


@each_precision
def test_counts_are_exact(precision):
    _, rows, _ = fit(Counted(FixedWeighting()), precision)
    assert len(rows) == STEPS
    assert {(row["loss/depth"], row["loss/kind"]) for row in rows} == {(2.0, 3.0)}
