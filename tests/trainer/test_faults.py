"""Losses that are NaN or infinite for some steps: told at once, or the step is skipped without a trace."""

import copy
import warnings

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_uncertainty import MultiTaskMixin, UncertaintyMonitor
from tests._nets import Owning, dicts, read_nothing, tensors, trainer
from tests.trainer._weightings import WEIGHTINGS

NAN, INF = float("nan"), float("inf")


class Faulty(MultiTaskMixin, LightningModule):
    """Two tasks; the batch brings a factor on the loss of `depth`."""

    def __init__(self, weighting=None, on_nonfinite="skip_step", optimizer="Adam"):
        super().__init__()
        self.trunk, self.depth, self.kind = nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(4, 3)
        kinds = {"depth": "gaussian", "kind": "categorical"}
        self.register_tasks(kinds, weighting=weighting, on_nonfinite=on_nonfinite)
        self.optimizer_name = optimizer

    def training_step(self, batch, batch_idx):
        x, depth, kind, factor = batch
        features = self.split_features(self.trunk(x))
        return self.weigh(
            {
                "depth": F.mse_loss(self.depth(features["depth"])[:, 0], depth) * factor,
                "kind": F.cross_entropy(self.kind(features["kind"]), kind),
            }
        )

    def configure_optimizers(self):
        return getattr(torch.optim, self.optimizer_name)(self.parameter_groups(lr=1e-2))


def batches(factors):
    """One batch for each factor on the loss of `depth`; sound batches are the same whatever faulty ones lie between."""
    rng = torch.Generator().manual_seed(0)
    dealt = []
    for factor in factors:
        x = torch.randn(8, 4, generator=rng) if factor == 1.0 else torch.ones(8, 4)
        dealt.append((x, 3 * x[:, 0] + 1, x[:, :3].argmax(1), torch.tensor(factor)))
    return DataLoader(dealt, batch_size=None)


def fit(factors, weighting, optimizer="Adam", net=Faulty, **options):
    torch.manual_seed(0)
    net = net(weighting, optimizer=optimizer)
    fitted = trainer(max_epochs=1, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="a training step is skipped", category=UserWarning)
        fitted.fit(net, batches(factors))
    return net, fitted.optimizers[0].state_dict()["state"]


FAULTS = [NAN, 1.0, INF, 1.0, 1.0, NAN, NAN, 1.0, 1.0, 1.0, INF]


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "SGD"])
@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)
def test_after_skipped_steps_all_is_as_if_they_had_not_been(weighting, optimizer):
    net, state = fit(FAULTS, weighting(), optimizer)
    sound, expected = fit([1.0] * FAULTS.count(1.0), weighting(), optimizer)
    torch.testing.assert_close(tensors(net), tensors(sound), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(state, expected, rtol=0, atol=0)
    assert net.skipped_steps == 5
    assert sound.skipped_steps == 0


def regulariser(net):
    return 0.01 * sum(parameter.square().sum() for parameter in net.trunk.parameters())


class Logs(Faulty):
    def training_step(self, batch, batch_idx):
        total = super().training_step(batch, batch_idx)
        self.log("train_loss", total, batch_size=8)
        return total


class ReturnsADict(Faulty):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx)}


class Regularised(Faulty):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + regulariser(self)


class KeepsZeros(Regularised):
    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        optimizer.zero_grad(set_to_none=False)


class Manual(Faulty):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad(set_to_none=False)
        self.manual_backward(super().training_step(batch, batch_idx) + regulariser(self))
        optimizer.step()


class WithAClosure(Manual):
    def training_step(self, batch, batch_idx):
        def closure():
            optimizer.zero_grad()
            self.manual_backward(Faulty.training_step(self, batch, batch_idx) + regulariser(self))

        optimizer = self.optimizers()
        optimizer.step(closure=closure)


HABITS = [Logs, ReturnsADict, Regularised, KeepsZeros, Manual, WithAClosure]


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
@pytest.mark.parametrize("net", HABITS)
def test_whatever_is_done_with_the_total_a_skipped_step_leaves_no_trace(net, optimizer):
    options = {"gradient_clip_val": 0.5} if issubclass(net, Regularised) else {}
    found, state = fit(FAULTS, None, optimizer, net=net, **options)
    sound, expected = fit([1.0] * FAULTS.count(1.0), None, optimizer, net=net, **options)
    torch.testing.assert_close(tensors(found), tensors(sound), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(state, expected, rtol=0, atol=0)
    assert found.skipped_steps == 5


def test_of_accumulated_batches_the_faulty_one_is_silent_whatever_was_added_to_its_total():
    net, _ = fit([1.0, 1.0, 1.0, NAN, NAN, 1.0], None, "SGD", net=Regularised, accumulate_grad_batches=2)
    torch.manual_seed(0)
    expected = Regularised(optimizer="SGD")
    optimizer = expected.configure_optimizers()
    for index, row in enumerate(batches([1.0] * 4).dataset):
        (expected.training_step(row, index) / 2).backward()
        if index > 0:
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(tensors(net), tensors(expected))


@pytest.mark.parametrize("net", [Faulty, Logs, Regularised])
def test_with_a_gradient_scaler_too(net):
    def plugin():
        return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=4.0))

    found, state = fit(FAULTS, None, net=net, plugins=[plugin()])
    sound, expected = fit([1.0] * FAULTS.count(1.0), None, net=net, plugins=[plugin()])
    torch.testing.assert_close(tensors(found), tensors(sound), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(state, expected, rtol=0, atol=0)


def test_with_a_gradient_scaler_two_of_the_batches_that_a_step_accumulates_may_be_faulty():
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    net, _ = fit([1.0, 1.0, NAN, NAN, 1.0, 1.0], None, plugins=[plugin], accumulate_grad_batches=2)
    sound, _ = fit([1.0] * 4, None, accumulate_grad_batches=2)
    assert net.skipped_steps == 2
    torch.testing.assert_close(tensors(net), tensors(sound), rtol=2e-3, atol=2e-3, equal_nan=True)  # of halves


def test_without_a_trainer_the_total_is_a_zero_that_can_be_stepped():
    net = Faulty()
    optimizer = net.configure_optimizers()
    before = tensors(net)
    with pytest.warns(UserWarning, match="a training step is skipped"):
        total = net.training_step(next(iter(batches([NAN]))), 0)
    total.backward()
    optimizer.step()
    assert (total.item(), net.skipped_steps) == (0.0, 1)
    assert all(parameter.grad is None for parameter in net.parameters())
    torch.testing.assert_close(tensors(net), before, rtol=0, atol=0, equal_nan=True)


def test_a_skipped_batch_without_a_backward_silences_no_other():
    net = Faulty()
    with pytest.warns(UserWarning, match="a training step is skipped"):
        net.training_step(next(iter(batches([NAN]))), 0)
    net.training_step(next(iter(batches([1.0]))), 0).backward()
    assert all(parameter.grad.any() for parameter in net.trunk.parameters())


def test_copies_and_other_fits_look_at_optimizers_of_their_own():
    net, _ = fit([1.0, NAN, 1.0], None, net=Regularised)
    again = copy.deepcopy(net)
    for each in (net, again):
        fitted = trainer(max_epochs=1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="a training step is skipped", category=UserWarning)
            fitted.fit(each, batches([1.0, NAN, 1.0]))
        assert {state["step"].item() for state in fitted.optimizers[0].state.values()} == {2}
    torch.testing.assert_close(tensors(net), tensors(again), rtol=0, atol=0)


def test_of_accumulated_batches_only_the_faulty_are_skipped():
    """The sum over the micro-batches of a step is divided by their number, be some of them skipped."""
    rows = batches([1.0, 1.0]).dataset
    net, _ = fit([1.0, NAN, NAN, 1.0], None, "SGD", accumulate_grad_batches=2)
    torch.manual_seed(0)
    expected = Faulty(optimizer="SGD")
    optimizer = expected.configure_optimizers()
    for index, row in enumerate(rows):
        optimizer.zero_grad()
        (expected.training_step(row, index) / 2).backward()
        optimizer.step()
    torch.testing.assert_close(tensors(net), tensors(expected))


def test_rows_leave_skipped_steps_out_and_one_warning_names_the_task():
    monitor = UncertaintyMonitor(table=False)
    net = Faulty()
    fitted = trainer(max_epochs=1, callbacks=[monitor], log_every_n_steps=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted.fit(net, batches([1.0, NAN, 1.0, NAN, INF, NAN]))
    ours = [str(warning.message) for warning in caught if "skipped" in str(warning.message)]
    assert len(ours) == 1
    assert "{'depth': nan}" in ours[0]
    assert net.skipped_steps == 4
    assert [row["step"] for row in monitor.history.rows] == [1, 3]  # nothing to tell in the third
    assert all(row["loss/depth"] > 0 for row in monitor.history.rows)


def test_metrics_of_training_have_not_seen_a_skipped_step():
    class Net(Owning):
        def training_step(self, batch, batch_idx):
            x = batch["x"] / (batch_idx != 1)
            return self.task_step(self.trunk(x).tanh(), batch, "train", train_metrics=True)

    net, fitted = Net(), trainer(max_epochs=1)
    net._task_skips = True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="a training step is skipped", category=UserWarning)
        fitted.fit(net, dicts())
    assert net.skipped_steps == 1
    metrics = {key: value for key, value in fitted.callback_metrics.items() if key.startswith("train/")}
    assert metrics.keys() == {"train/depth/MeanAbsoluteError", "train/kind/MulticlassAccuracy"}
    assert all(value.isfinite() for value in metrics.values())


def test_by_default_the_task_is_named_before_backward():
    net = Faulty(on_nonfinite="raise")
    before = tensors(net)
    with pytest.raises(ValueError, match="loss of task 'depth' should be finite and at least 0: found nan"):
        trainer().fit(net, batches([NAN, 1.0]))
    assert all(parameter.grad is None for parameter in net.parameters())
    torch.testing.assert_close(tensors(net), before, rtol=0, atol=0, equal_nan=True)


def test_a_negative_loss_is_no_fault_to_skip():
    with pytest.raises(ValueError, match="'depth' should be finite and at least 0: found -"):
        trainer().fit(Faulty(), batches([-1.0]))


def test_elsewhere_than_on_eager_cpu_steps_are_skipped_at_once_and_errors_told_with_the_next_row(monkeypatch):
    read_nothing(monkeypatch)
    net, _ = fit(FAULTS, None)
    assert net.skipped_steps == 5
    with pytest.raises(
        ValueError, match="'depth' should be finite and at least 0: found a value that is negative, NaN"
    ):
        trainer(callbacks=[UncertaintyMonitor()]).fit(Faulty(on_nonfinite="raise"), batches([1.0, NAN]))


def test_any_other_word_is_refused():
    with pytest.raises(ValueError, match="on_nonfinite should be 'raise' or 'skip_step': found 'ignore'"):
        Faulty(on_nonfinite="ignore")


def test_missing_labels_are_no_fault():
    net = Faulty()
    assert net.weigh({"depth": (torch.tensor(NAN), 0.0), "kind": torch.tensor(1.0)}) is not None
    assert net.skipped_steps == 0
