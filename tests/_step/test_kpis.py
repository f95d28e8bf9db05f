"""Metrics of training batches on their way to a weighting; two processes are in tests/trainer/test_ddp.py."""

import math

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn
from torchmetrics import Accuracy, ClasswiseWrapper, ConfusionMatrix, MeanAbsoluteError, R2Score

from lightning_uncertainty import MultiTaskMixin, Task, UncertaintyMonitor
from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.weightings import DynamicTaskPrioritization
from tests._nets import in_a_row, tensors, trainer

ACCURACY = Accuracy("multiclass", num_classes=3)


class Net(MultiTaskMixin, LightningModule):
    """Keeps the share of right classes of every training batch."""

    def __init__(self, weighting, **options):
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        tasks = {"depth": Task("gaussian", nn.Linear(8, 1)), "kind": Task("categorical", nn.Linear(8, 3))}
        self.register_tasks(tasks, weighting=weighting, **options)
        self.right, self.states = [], []

    def training_step(self, batch, batch_idx):
        features = self.trunk(batch["x"]).tanh()
        with torch.no_grad():
            seen = batch["kind"] >= 0
            right = self.task_heads["kind"](features).argmax(1)[seen] == batch["kind"][seen]
            self.right.append(right.float().mean().item())
        total = self.task_step(features, batch, "train")
        self.states.append(tensors(self.task_weighting))
        return total

    def validation_step(self, batch, batch_idx):
        self.task_step(self.trunk(batch["x"]).tanh(), batch, "val")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameter_groups(lr=1e-2))


class Bare(Net):
    def training_step(self, batch, batch_idx):
        return self.task_step(self.trunk(batch["x"]).tanh(), batch, "train")


def fit(net, batches=12, compiled=None, **options):
    monitor = UncertaintyMonitor(table=False)
    loader = in_a_row(batches)
    trainer(max_epochs=1, callbacks=[monitor], **options).fit(net if compiled is None else compiled, loader, loader)
    return monitor.history.rows


def average(kpis, decay):
    mean = None
    for kpi in kpis:
        mean = kpi if mean is None else mean if math.isnan(kpi) else decay * mean + (1 - decay) * kpi
    return mean


@pytest.mark.parametrize(
    "within", [lambda weighting: weighting, lambda weighting: GradientBalancing("mgda", weighting)]
)
def test_a_step_hears_what_the_metric_says_of_its_batch(within):
    weighting = DynamicTaskPrioritization({"kind": ACCURACY, "depth": 9.0}, decay=0.8)
    net = Net(within(weighting))
    weighting = getattr(net.task_weighting, "weighting", net.task_weighting)
    rows = fit(net)
    assert len(rows) == len(net.right) == 12
    for step, row in enumerate(rows):
        mean = average(net.right[: step + 1], 0.8)
        kpi = min(max(mean, 1e-3), 1 - 1e-6)
        if weighting is net.task_weighting:
            assert row["weight/kind"] == pytest.approx(-(1 - kpi) * math.log(kpi), rel=1e-4)
    assert weighting.kpi[1].item() == pytest.approx(average(net.right, 0.8), rel=1e-5)
    assert len(set(net.right)) > 3


def test_a_batch_without_labels_is_no_news():
    net = Net(DynamicTaskPrioritization({"kind": ACCURACY, "depth": 9.0}, decay=0.5))
    x, labels = torch.randn(4, 4), torch.tensor([0, 1, 2, 0])
    for kind in (labels, torch.full((4,), -100), None, labels):
        net.training_step({"x": x, "depth": x[:, 0], "kind": kind if kind is not None else labels * 0 - 100}, 0)
        net.task_step(net.trunk(x).tanh(), {"depth": x[:, 0], "kind": None}, "train")
    kept = [state["shortfall"][1].item() for state in net.states]
    assert kept[0] == kept[1] == kept[2]
    assert net.task_weighting.kpi[1].item() == pytest.approx(average([net.right[0], net.right[3]], 0.5))


def test_the_metric_of_the_constructor_and_those_of_the_task_are_left_alone():
    mine = Accuracy("multiclass", num_classes=3)
    net = Net(DynamicTaskPrioritization({"kind": mine, "depth": 9.0}))
    fit(net)
    assert not mine.update_called
    (own,) = net.task_weighting.kpi_metrics().values()
    assert not own.update_called


def test_evaluation_asks_no_metric(monkeypatch):
    net = Net(DynamicTaskPrioritization({"kind": ACCURACY, "depth": 9.0}))
    fit(net, 3)
    before = tensors(net.task_weighting)
    monkeypatch.delattr("lightning_uncertainty._step.kpis._measured")
    trainer().validate(net, in_a_row(5), verbose=False)
    with torch.no_grad():
        net.training_step(next(iter(in_a_row(1))), 0)
    torch.testing.assert_close(tensors(net.task_weighting), before, rtol=0, atol=0)


def test_a_value_counts_for_its_own_step_alone():
    net = Net(DynamicTaskPrioritization({"kind": ACCURACY, "depth": 9.0}, decay=0.0))
    net.training_step(next(iter(in_a_row(1))), 0)
    net.task_weighting.observe({"kind": 0.125})
    net.weigh({"depth": torch.ones(()), "kind": torch.ones(())})
    assert net.task_weighting.kpi[1] == 0.125 != net.right[0]


@pytest.mark.filterwarnings("ignore:a training step is skipped")
def test_a_skipped_step_is_not_heard():
    net = Net(DynamicTaskPrioritization({"kind": ACCURACY, "depth": 9.0}), on_nonfinite="skip_step")
    good, bad = in_a_row(2).dataset
    bad = {**bad, "depth": torch.full_like(bad["depth"], torch.inf)}
    net.training_step(good, 0)
    net.training_step(bad, 1)
    torch.testing.assert_close(net.states[1], net.states[0], rtol=0, atol=0)
    net.training_step(good, 2)
    assert net.right[0] != net.right[1]
    assert net.task_weighting.kpi[1].item() == pytest.approx(average(net.right[::2], 0.9))


def test_a_computed_loss_has_no_metric_unless_it_is_observed():
    net = Net(DynamicTaskPrioritization({"kind": ACCURACY, "depth": 9.0}))
    losses = {"depth": torch.ones(()), "kind": torch.ones(())}
    with pytest.raises(
        ValueError, match=r"KPI of task 'kind' should be observed before .* call task_weighting.observe"
    ):
        net.weigh(losses)
    net.task_weighting.observe({"kind": 0.5})
    net.weigh(losses)
    assert net.take_row()["weight"]["kind"] == pytest.approx(0.5 * math.log(2))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (ConfusionMatrix("multiclass", num_classes=3), r"should be a metric with one number: found shape \[3, 3\]"),
        (ClasswiseWrapper(Accuracy("multiclass", num_classes=3, average=None)), "one number: found a dict"),
    ],
)
def test_metrics_with_many_numbers_are_refused(metric, message):
    with pytest.raises(ValueError, match=message):
        fit(Net(DynamicTaskPrioritization({"kind": metric, "depth": 9.0})))


def test_a_metric_that_refuses_a_batch_is_no_news():
    weighting = DynamicTaskPrioritization({"depth": R2Score(), "kind": 0.5}, decay=0.5)
    net, x = Net(weighting), torch.randn(4, 4)
    near = net.task_heads["depth"](net.trunk(x).tanh())[:, 0].detach() + torch.tensor([0.01, 0, 0, 0])
    labels = {"depth": near, "kind": torch.zeros(4).long()}
    net.training_step({"x": x, **labels}, 0)
    before = tensors(net.task_weighting)["shortfall"][0]
    with pytest.warns(UserWarning, match="KPI of task 'depth' has no value of 1 labels: Needs at least two"):
        net.training_step({"x": x[:1], "depth": labels["depth"][:1] + 1, "kind": labels["kind"][:1]}, 1)
    assert tensors(net.task_weighting)["shortfall"][0] == before > 0


@pytest.mark.parametrize("metric", [MeanAbsoluteError(), R2Score()])
def test_metrics_outside_0_and_1_are_refused(metric):
    with pytest.raises(ValueError, match=r"the KPI of task 'depth' should lie in \[0, 1\], higher better: found"):
        fit(Net(DynamicTaskPrioritization({"depth": metric})))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_fit_hears_the_same():
    """At the price of breaks, as any metric may be computed."""
    torch._dynamo.reset()
    ends = []
    for compiled in (True, False):
        torch.manual_seed(0)
        net = Bare(DynamicTaskPrioritization({"kind": ACCURACY, "depth": 9.0}))
        fit(net, 6, torch.compile(net, backend="aot_eager") if compiled else None, limit_val_batches=0)
        ends.append(tensors(net))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
