"""On a GPU: the numbers of the CPU, no wait for the device in a step, GradScaler and CUDA graphs."""

import warnings

import pytest
import torch
from torch import nn

from lightning_uncertainty import MultiTaskMixin, Task, UncertaintyMonitor
from tests._nets import Owning, columns, in_a_row, tensors, trainer
from tests.trainer._weightings import WEIGHTINGS

DEVICE = "cuda"
STEPS = 20

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
each_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)


class Stepped(Owning):
    """Owning with an optimizer that half-precision networks stand too, and a fixed row of batches."""

    def train_dataloader(self):
        return in_a_row(STEPS)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameter_groups(lr=1e-2))


def fit(weighting, accelerator="gpu", compiled=None, **options):
    torch.manual_seed(0)
    net, monitor = Stepped(weighting()), UncertaintyMonitor(table=False)
    fitted = trainer(accelerator=accelerator, max_epochs=1, callbacks=[monitor], **options)
    fitted.fit(net if compiled is None else torch.compile(net, mode=compiled))
    return net, monitor.history.rows, fitted


def assert_close(rows, expected, rel):
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=rel, abs=rel)


@each_weighting
def test_a_fit_gives_the_numbers_of_the_cpu(weighting):
    net, rows, _ = fit(weighting, precision="64-true")
    expected, expected_rows, _ = fit(weighting, "cpu", precision="64-true")
    torch.testing.assert_close(tensors(net.cpu()), tensors(expected), rtol=1e-9, atol=1e-9, equal_nan=True)
    assert_close(rows, expected_rows, 1e-9)


@each_weighting
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "16-true", "bf16-true"])
def test_sigma_learns_in_float32_under_every_precision(weighting, precision):
    net, rows, fitted = fit(weighting, precision=precision)
    assert net.task_weighting.dtypes() <= {torch.float32}
    assert (fitted.scaler is not None) == (precision == "16-mixed")
    _, expected, _ = fit(weighting, precision="32-true")
    assert_close(rows, expected, 0.1)


def test_a_step_that_the_grad_scaler_skips_and_one_that_we_skip_leave_sigma_alone():
    class Faulty(Stepped):
        def training_step(self, batch, batch_idx):
            outputs = self.task_outputs(self.trunk(batch["x"]).tanh())
            losses = self.task_losses(outputs, batch)
            if batch_idx >= STEPS // 2:
                losses["kind"] = (losses["kind"][0] * torch.inf, losses["kind"][1])
            return self.weigh(losses)

    net = Faulty()
    net._skips = True
    after = []
    net.on_train_batch_end = lambda *_: after.append(tensors(net))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*training_step. returned .None", category=UserWarning)
        warnings.filterwarnings("ignore", message="a training step is skipped", category=UserWarning)
        trainer(accelerator="gpu", max_epochs=1, precision="16-mixed").fit(net)
    assert net.skipped_steps == STEPS - STEPS // 2
    torch.testing.assert_close(after[-1], after[STEPS // 2 - 1], rtol=0, atol=0)


def test_a_loss_that_is_not_finite_is_told_with_the_next_row():
    class Faulty(Stepped):
        def training_step(self, batch, batch_idx):
            return super().training_step({**batch, "x": batch["x"] / (batch_idx != 7)}, batch_idx)

    with pytest.raises(ValueError, match="should be finite and at least 0"):
        trainer(accelerator="gpu", max_epochs=1, callbacks=[UncertaintyMonitor()], log_every_n_steps=10).fit(Faulty())


@each_weighting
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])  # the latter replays CUDA graphs
def test_a_compiled_fit_gives_the_numbers_of_an_eager_one(weighting, mode):
    net, rows, _ = fit(weighting, compiled=mode, log_every_n_steps=5)
    expected, expected_rows, _ = fit(weighting, log_every_n_steps=5)
    torch.testing.assert_close(tensors(net), tensors(expected), rtol=1e-4, atol=1e-5, equal_nan=True)
    assert_close(rows, expected_rows, 1e-4)


@each_weighting
def test_steps_do_not_wait_for_the_device(weighting):
    net = Stepped(weighting()).to(DEVICE)
    batch = {name: column.to(DEVICE) for name, column in columns(missing=True).items()}
    optimizer = net.configure_optimizers()

    def step():
        optimizer.zero_grad()
        net.task_step(net.trunk(batch["x"]).tanh(), batch, "train").backward()
        optimizer.step()

    step()
    net.take_row()  # looks whether every task has started
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(STEPS):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert set(net.take_row()["loss"]) == {"depth", "kind"}


def test_every_likelihood_takes_missing_labels_without_waiting():
    class Net(MultiTaskMixin, nn.Module):
        def __init__(self):
            super().__init__()
            kinds = {
                **dict.fromkeys(("gaussian", "laplace", "poisson"), "inputs"),
                **dict.fromkeys(("categorical", "categorical_half"), "classes"),
                "bernoulli": "bits",
            }
            heads = {"inputs": 1, "bits": 1, "classes": 3}
            self.register_tasks(
                {name: Task(name, head=nn.Linear(4, heads[to]), target=to) for name, to in kinds.items()}
            )

    net = Net().to(DEVICE)
    net._setup_checked = True
    inputs = torch.rand(6, 1, device=DEVICE)
    inputs[::2] = torch.nan
    bits = (inputs > 0.5).float()
    classes = torch.arange(6, device=DEVICE) % 3
    classes[::2] = -100
    batch = {"inputs": inputs, "bits": bits, "classes": classes}
    features = torch.randn(6, 4, device=DEVICE)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        net.task_step(features, batch, "train").backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(parameter.grad.isfinite().all() for parameter in net.task_heads.parameters())
