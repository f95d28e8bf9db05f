"""Every weighting on a GPU: the numbers of the CPU, in half precision too, and under a GradScaler."""

import warnings
from functools import cache
from itertools import pairwise

import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision

from lightning_uncertainty import UncertaintyMonitor
from lightning_uncertainty.balancing._fork import gramian_of
from lightning_uncertainty.balancing.solvers.gramian import SOLVERS
from lightning_uncertainty.likelihoods import Gaussian
from lightning_uncertainty.weightings import UncertaintyWeighting
from tests._nets import Owning, in_a_row, tensors, trainer
from tests.gpu._cases import EVERY
from tests.gpu._device import ACCELERATOR, DEVICE, for_gpu, on_device
from tests.trainer._weightings import BALANCING, WEIGHTINGS

pytestmark = for_gpu

STEPS = 20
PRECISIONS = {"16-mixed": 5e-3, "bf16-mixed": 5e-2, "16-true": 2e-2, "bf16-true": 1e-1}  # and what rows agree to


class Stepped(Owning):
    """Owning with an optimizer that half-precision networks stand too, and a fixed row of batches."""

    def train_dataloader(self):
        return in_a_row(STEPS)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameter_groups(lr=1e-2))


def fit(net, accelerator=ACCELERATOR, **options):
    """Train; return the module's tensors, the monitor's rows and the Trainer."""
    monitor = UncertaintyMonitor(table=False)
    fitted = trainer(accelerator=accelerator, max_epochs=1, callbacks=[monitor], **options)
    fitted.fit(net)
    return tensors(net.cpu()), monitor.history.rows, fitted


def fit_weighting(weighting, accelerator=ACCELERATOR, **options):
    torch.manual_seed(0)
    return fit(Stepped(EVERY[weighting]()), accelerator, **options)


def under(precision, scale=2.0**8):
    """A Trainer's options; the scale of 16-mixed is one at which no gradient here is infinite."""
    if precision != "16-mixed":
        return {"precision": precision}
    return {"plugins": [MixedPrecision("16-mixed", DEVICE, torch.amp.GradScaler(DEVICE, init_scale=scale))]}


def gap(rows, others):
    """Return by how much losses, σ and weights differ at most, relatively (from a weight of 0, absolutely)."""
    assert len(rows) == len(others) == STEPS
    pairs = [
        (row[key], value)
        for row, other in zip(rows, others, strict=True)
        for key, value in other.items()
        if key.startswith(("loss/", "sigma/", "weight/"))
    ]
    return max(abs(found - expected) / (abs(expected) or 1.0) for found, expected in pairs)


@pytest.mark.parametrize("weighting", EVERY)
def test_a_fit_gives_the_numbers_of_the_cpu(weighting, record_property):
    with on_device():
        state, rows, _ = fit_weighting(weighting, precision="64-true")
    expected, expected_rows, _ = fit_weighting(weighting, "cpu", precision="64-true")
    record_property("rows of 64-true agree with the CPU's to", gap(rows, expected_rows))
    torch.testing.assert_close(state, expected, rtol=1e-8, atol=1e-8, equal_nan=True)
    for row, other in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(other, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("tasks", [2, 3, 10])
@pytest.mark.parametrize("name", ["mgda", "pcgrad", "imtl_g"])
def test_solvers_give_the_numbers_of_the_cpu(name, tasks, record_property):
    rows = torch.randn(tasks, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(tasks))
    given = rows @ rows.T, torch.linspace(1, 2, tasks, dtype=torch.float64), torch.tensor(3)
    with on_device():
        found = SOLVERS[name]()(*(tensor.to(DEVICE) for tensor in given)).cpu()
    expected = SOLVERS[name]()(*given)
    record_property("weights of solvers agree with the CPU's to", (found - expected).abs().max().item())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_tensor_cores_leave_gramians_and_shared_sigma_what_they_are(record_property):
    """With set_float32_matmul_precision("high"), as Lightning advises on such a GPU."""
    rows = torch.randn(3, 4096, generator=torch.Generator().manual_seed(0))
    exact = rows.double() @ rows.double().T
    pooled = UncertaintyWeighting(start=2.003, shared=[["a", "b"]]).bind(dict.fromkeys("ab", Gaussian())).to(DEVICE)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with on_device():
            gramian = gramian_of(rows.to(DEVICE)).cpu()
            s = pooled(torch.ones(2, device=DEVICE), torch.ones(2, dtype=torch.bool, device=DEVICE)).log_variances
    finally:
        torch.set_float32_matmul_precision(before)
    lengths = exact.diagonal().sqrt()
    found = ((gramian - exact) / (lengths[:, None] * lengths)).abs().max().item()
    record_property("cosines by tensor cores are off by", found)
    assert found < 2e-3
    torch.testing.assert_close(s.cpu(), torch.full((2,), 2.003))


@cache
def fit_in_float32(weighting):
    with on_device():
        return fit_weighting(weighting, precision="32-true")[1]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_under_every_precision_it_trains_as_in_float32(weighting, precision, record_property):
    with on_device():
        state, rows, fitted = fit_weighting(weighting, **under(precision))
    assert fitted.lightning_module.task_weighting.dtypes() <= {torch.float32}
    assert (fitted.scaler is not None) == (precision == "16-mixed")
    half = {"16-true": torch.float16, "bf16-true": torch.bfloat16}
    assert state["trunk.weight"].dtype is half.get(precision, torch.float32)
    found = gap(rows, fit_in_float32(weighting))
    record_property(f"rows of {precision} agree with 32-true to", found)
    assert found < PRECISIONS[precision] * (4 if weighting in BALANCING else 1)  # weights follow gradients, too


def test_steps_that_a_grad_scaler_drops_leave_sigma_alone():
    """At 2^30 the network's gradient is infinite in float16: the scale is halved until it is not."""
    net, scales = Stepped(), []
    net.on_after_backward = lambda: scales.append(net.trainer.scaler.get_scale())
    with on_device():
        torch.manual_seed(0)
        _, rows, _ = fit(net, **under("16-mixed", scale=2.0**30))
    dropped = [later < scale for scale, later in pairwise(scales)]
    assert 3 < sum(dropped) < STEPS - 1
    assert [row["sigma/depth"] == later["sigma/depth"] for row, later in pairwise(rows)] == dropped


@pytest.mark.parametrize("weighting", ["UncertaintyWeighting", "AnalyticUncertaintyWeighting", "GradientBalancing"])
def test_a_step_that_is_skipped_leaves_everything_alone(weighting):
    class Faulty(Stepped):
        def training_step(self, batch, batch_idx):
            outputs = self.task_outputs(self.trunk(batch["x"]).tanh())
            losses = self.task_losses(outputs, batch)
            if batch_idx >= STEPS // 2:
                losses["kind"] = (losses["kind"][0] * torch.inf, losses["kind"][1])
            return self.weigh(losses)

    net, after = Faulty(EVERY[weighting]()), []
    net._task_skips = True
    net.on_train_batch_end = lambda *_: after.append(tensors(net))
    with on_device(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="a training step is skipped", category=UserWarning)
        trainer(accelerator=ACCELERATOR, max_epochs=1, **under("16-mixed", scale=2.0**16)).fit(net)
    assert net.skipped_steps == STEPS - STEPS // 2
    torch.testing.assert_close(after[-1], after[STEPS // 2 - 1], rtol=0, atol=0, equal_nan=True)
    assert all(value.isfinite().all() for name, value in after[-1].items() if name.startswith("trunk."))


def test_a_loss_that_is_not_finite_is_told_with_the_next_row():
    class Faulty(Stepped):
        def training_step(self, batch, batch_idx):
            if batch_idx == 10:
                self.gone_on = True
            return super().training_step({**batch, "x": batch["x"] / (batch_idx != 7)}, batch_idx)

    net = Faulty()
    fitting = trainer(accelerator=ACCELERATOR, max_epochs=1, callbacks=[UncertaintyMonitor()], log_every_n_steps=12)
    with on_device(), pytest.raises(ValueError, match="should be finite and at least 0"):
        fitting.fit(net)
    assert net.gone_on
