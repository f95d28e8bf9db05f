"""Modes of the Trainer on a GPU: evaluation, callbacks, resuming, DDP, comparisons."""

import pytest
import torch
import torch.distributed
from torchmetrics import Accuracy

from lightning_uncertainty import GradientConflictMonitor, UncertaintyMonitor, UncertaintyWarmUp, UncertaintyWeighting
from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.trials import compare
from lightning_uncertainty.weightings import DynamicTaskPrioritization, FixedWeighting
from tests._nets import Owning, dicts, in_a_row, tensors, trainer
from tests.gpu._cases import EVERY
from tests.gpu._device import ACCELERATOR, DEVICE, REHEARSED, for_gpu, on_device
from tests.trainer._weightings import WEIGHTINGS

pytestmark = for_gpu

EPOCHS, STEPS = 3, 12


class Fitted(Owning):
    def train_dataloader(self):
        return in_a_row(STEPS)

    def val_dataloader(self):
        return in_a_row(3)

    test_dataloader = val_dataloader

    def test_step(self, batch, batch_idx):
        self.task_step(self.trunk(batch["x"]).tanh(), batch, "test")


def both(run):
    """Return what a function of an accelerator gives on the device, and on the CPU."""
    with on_device():
        found = run(ACCELERATOR)
    return found, run("cpu")


def assert_close(found, expected, rel=1e-8):
    assert len(found) == len(expected) > 0
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=rel, abs=rel)


def test_evaluation_gives_the_numbers_of_the_cpu():
    """In the fit, by itself, and before any fit."""

    def run(accelerator):
        torch.manual_seed(0)
        net, fitting = Fitted(), trainer(accelerator=accelerator, max_epochs=EPOCHS, precision="64-true")
        rows = fitting.validate(net, verbose=False)
        fitting.fit(net)
        rows.append({key: value.item() for key, value in fitting.callback_metrics.items()})
        return rows + fitting.validate(net, verbose=False) + fitting.test(net, verbose=False)

    assert_close(*both(run), rel=1e-6)  # metrics are in float32


@pytest.mark.parametrize("weighting", ["UncertaintyWeighting", "GradientBalancing", "on parameters", "FixedWeighting"])
def test_callbacks_see_the_numbers_of_the_cpu(weighting):
    def run(accelerator):
        torch.manual_seed(0)
        monitor, conflicts = UncertaintyMonitor(table=False), GradientConflictMonitor(every_n_steps=2)
        callbacks = [monitor, conflicts, UncertaintyWarmUp(steps=8, blend_from={"depth": 0.1})]
        fitting = trainer(accelerator=accelerator, max_epochs=EPOCHS, precision="64-true", callbacks=callbacks)
        fitting.fit(Fitted(EVERY[weighting]()))
        return monitor.history.rows, monitor.evaluations.rows, conflicts.history.rows

    for found, expected in zip(*both(run), strict=True):
        for row in [*found, *expected]:
            row.pop("worst_task", None)  # where all fare alike, rounding says which
        assert_close(found, expected, rel=1e-6)


@pytest.mark.parametrize("weighting", ["UncertaintyWeighting", "ConstrainedUncertaintyWeighting"])
def test_sigma_is_held(weighting):
    def run(accelerator):
        torch.manual_seed(0)
        monitor = UncertaintyMonitor(table=False)
        callbacks = [monitor, UncertaintyWarmUp(steps=8)]
        trainer(accelerator=accelerator, max_epochs=1, callbacks=callbacks).fit(Fitted(EVERY[weighting]()))
        return monitor.history.rows

    found, expected = both(run)
    assert_close(found, expected, rel=1e-4)
    assert len({row["sigma/depth"] for row in found[:8]}) == 1 < len({row["sigma/depth"] for row in found})


def test_a_metric_as_kpi_is_that_of_the_cpu():
    def run(accelerator):
        torch.manual_seed(0)
        kpis = {"depth": 2.0, "kind": Accuracy("multiclass", num_classes=3)}
        net, monitor = Fitted(DynamicTaskPrioritization(kpis)), UncertaintyMonitor(table=False)
        trainer(accelerator=accelerator, max_epochs=1, precision="64-true", callbacks=[monitor]).fit(net)
        return monitor.history.rows

    assert_close(*both(run), rel=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_resumed_fit_ends_as_one_that_was_never_interrupted(weighting, tmp_path):
    def fit(epochs, path=None, seed=0):
        torch.manual_seed(seed)
        net, fitting = Fitted(EVERY[weighting]()), trainer(accelerator=ACCELERATOR, max_epochs=epochs)
        with on_device():
            fitting.fit(net, ckpt_path=path)
        return net, fitting

    _, fitting = fit(1)
    fitting.save_checkpoint(tmp_path / "one.ckpt")
    resumed, whole = (tensors(net) for net, _ in (fit(EPOCHS, tmp_path / "one.ckpt", seed=1), fit(EPOCHS)))
    torch.testing.assert_close(resumed, whole, rtol=1e-6, atol=1e-7, equal_nan=True)
    saved = torch.load(tmp_path / "one.ckpt", map_location="cpu", weights_only=False)["state_dict"]
    elsewhere = Fitted(EVERY[weighting]())  # on the CPU
    elsewhere.load_state_dict(saved)
    with on_device():
        assert elsewhere.to(DEVICE).task_weighting.check_tasks() is None


@pytest.mark.parametrize("weighting", ["UncertaintyWeighting", "GradNorm", "GradientBalancing", "on parameters"])
def test_ddp_of_one_process_trains_as_without(weighting):
    def fit(**options):
        torch.manual_seed(0)
        net = Fitted(EVERY[weighting]())
        with on_device():
            trainer(accelerator=ACCELERATOR, max_epochs=1, precision="64-true", **options).fit(net)
        return tensors(net)

    expected = fit()
    try:
        found = fit(strategy="ddp", use_distributed_sampler=False)
        assert torch.distributed.get_backend() == ("gloo" if REHEARSED else "nccl")
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_gradients_accumulate_and_are_clipped_as_on_the_cpu():
    def run(accelerator):
        torch.manual_seed(0)
        net = Fitted(GradientBalancing("mgda", UncertaintyWeighting()))
        options = {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5, "precision": "64-true"}
        trainer(accelerator=accelerator, max_epochs=1, **options).fit(net)
        return tensors(net.cpu())

    torch.testing.assert_close(*both(run), rtol=1e-8, atol=1e-8)


def test_a_comparison_has_time_and_memory_of_the_gpu(tmp_path):
    options = {"seeds": [0], "baseline": None, "progress_bar": False}
    options["trainer"] = {"max_epochs": 2, "accelerator": ACCELERATOR, "devices": 1}
    with on_device():
        found = compare(Owning, (dicts(16), dicts(16)), {"equal": FixedWeighting}, tmp_path / "trials", **options)
    assert len(found.trials) == 1
    for one in found.trials:
        assert 0 < one.step_time < 1
        assert REHEARSED or 0 < one.peak_memory < 2**30
