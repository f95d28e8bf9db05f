import math

import pytest
import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError

from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.metrics import BalancedLoss, ObservedMetric, TaskLoss
from lightning_uncertainty.tasks import Task, TaskMetrics
from lightning_uncertainty.weightings import UncertaintyWeighting

NAN = float("nan")


def with_other_rank(metric, *states):
    """Let a metric believe in a second rank, whose states are given in the order they were declared."""
    others = iter(states)
    metric.distributed_available_fn = lambda: True
    metric.dist_sync_fn = lambda tensor, group=None: [tensor, next(others).reshape_as(tensor)]
    return metric


def test_task_loss_is_the_mean_over_scalars_not_over_batches():
    metric = TaskLoss()
    metric.update(torch.tensor(9.0), torch.tensor(1.0))
    metric.update(torch.tensor(3.0), torch.tensor(3.0))
    assert metric.compute().item() == 3.0  # the mean of means is 5


def test_task_loss_adds_up_over_ranks():
    metric = with_other_rank(TaskLoss(), torch.tensor(3.0), torch.tensor(3.0))
    metric.update(torch.tensor(9.0), torch.tensor(1.0))
    assert metric.compute().item() == 3.0


def test_task_loss_with_a_rank_that_saw_nothing():
    metric = with_other_rank(TaskLoss(), torch.tensor(3.0), torch.tensor(3.0))
    metric.update(torch.tensor(NAN), torch.tensor(0.0))
    assert metric.compute().item() == 1.0


def test_task_loss_ignores_batches_without_labels():
    metric = TaskLoss()
    metric.update(torch.tensor(NAN), torch.tensor(0.0))
    assert metric.compute() is None
    metric.update(torch.tensor(8.0), torch.tensor(4.0))
    metric.update(torch.tensor(NAN), torch.tensor(0.0))
    assert metric.compute().item() == 2.0


def test_task_loss_shows_a_diverged_network():
    metric = TaskLoss()
    metric.update(torch.tensor(NAN), torch.tensor(2.0))
    assert math.isnan(metric.compute().item())


def test_task_loss_starts_afresh_and_keeps_no_graph():
    metric = TaskLoss()
    metric.update(torch.tensor(8.0, requires_grad=True) * 1, torch.tensor(4.0))
    assert not metric.compute().requires_grad
    metric.reset()
    assert metric.sum.item() == metric.count.item() == 0.0
    metric.update(torch.tensor(1.0), torch.tensor(1.0))
    assert metric.compute().item() == 1.0


POWERS = {"depth": 0.5, "distance": 1.0, "semantics": 0.5}


def balanced(losses, powers=POWERS):
    metric = BalancedLoss(powers)
    metric.update(torch.tensor(losses), torch.ones(len(losses)))
    return metric.compute().item()


def test_balanced_loss_is_kendalls_objective_at_its_optimum_up_to_a_constant():
    tasks = {
        name: as_likelihood(kind) for name, kind in zip(POWERS, ["gaussian", "laplace", "categorical"], strict=True)
    }

    def objective(losses):  # every log-variance starts at the optimum
        return UncertaintyWeighting().bind(tasks)(torch.tensor(losses), torch.ones(3, dtype=torch.bool)).total.item()

    one, other = [4.0, 0.3, 0.7], [2.5, 0.5, 0.9]
    assert balanced(one) - balanced(other) == pytest.approx(objective(one) - objective(other), rel=1e-5)


def test_balanced_loss_only_shifts_with_units():
    one, other = [4.0, 0.3, 0.7], [2.5, 0.5, 0.9]
    metres_to_millimetres = [1e6, 1e3, 1.0]
    scaled = [[x * k for x, k in zip(losses, metres_to_millimetres, strict=True)] for losses in (one, other)]
    shifts = balanced(scaled[0]) - balanced(one), balanced(scaled[1]) - balanced(other)
    assert shifts[0] == pytest.approx(shifts[1], rel=1e-5)
    assert shifts[0] == pytest.approx(0.5 * math.log(1e6) + math.log(1e3), rel=1e-5)


def test_balanced_loss_is_the_log_of_the_mean():
    metric = BalancedLoss({"depth": 1.0})
    metric.update(torch.tensor([1.0]), torch.tensor([1.0]))
    metric.update(torch.tensor([21.0]), torch.tensor([3.0]))
    assert metric.compute().item() == pytest.approx(math.log(22 / 4))


def test_balanced_loss_adds_up_over_ranks():
    metric = with_other_rank(BalancedLoss({"depth": 1.0}), torch.tensor([21.0]), torch.tensor([3.0]))
    metric.update(torch.tensor([1.0]), torch.tensor([1.0]))
    assert metric.compute().item() == pytest.approx(math.log(22 / 4))


def test_balanced_loss_of_a_perfect_task_is_finite():
    assert math.isfinite(balanced([0.0, 1.0, 1.0]))


def test_balanced_loss_leaves_out_tasks_without_labels_and_says_so_once():
    metric = BalancedLoss(POWERS)
    metric.update(torch.tensor([NAN, 5.0, NAN]), torch.tensor([0.0, 2.0, 0.0]))
    assert metric.compute().item() == pytest.approx(math.log(2.5))
    with pytest.warns(UserWarning, match="no label of depth, semantics in this evaluation"):
        metric.reset()
    metric.update(torch.tensor([NAN, 1.0, NAN]), torch.tensor([0.0, 2.0, 0.0]))
    assert metric.compute().item() == pytest.approx(math.log(0.5))
    metric.reset()  # no second warning: it would be an error here


def test_balanced_loss_does_not_warn_of_tasks_whose_labels_come_later_in_the_epoch():
    metric = BalancedLoss(POWERS)
    for sums, counts in (([4.0, NAN, NAN], [1.0, 0.0, 0.0]), ([NAN, 1.0, 1.0], [0.0, 1.0, 1.0])):
        metric.update(torch.tensor(sums), torch.tensor(counts))
        value = metric.compute()
    assert value.item() == pytest.approx(0.5 * math.log(4.0))
    metric.reset()


def test_balanced_loss_of_nothing_is_none():
    metric = BalancedLoss({"depth": 0.5})
    metric.update(torch.tensor([NAN]), torch.tensor([0.0]))
    assert metric.compute() is None
    with pytest.warns(UserWarning, match="no label of depth"):
        metric.reset()


def test_balanced_loss_with_all_tasks_does_not_warn():
    metric = BalancedLoss(POWERS)
    metric.update(torch.ones(3), torch.ones(3))
    assert metric.compute() == 0.0
    metric.reset()  # warnings are errors here


def test_observed_metric_is_the_metric_of_what_was_observed():
    metric, oracle = ObservedMetric(MeanSquaredError()), MeanSquaredError()
    for count in (3, 0, 5):
        prediction, label = torch.randn(count), torch.randn(count)
        metric.update(prediction, label)
        if count:
            oracle.update(prediction, label)
    assert metric.compute().equal(oracle.compute())


def test_observed_metric_without_labels_is_none_in_silence():
    metric = ObservedMetric(MeanAbsoluteError())
    metric.update(torch.empty(0), torch.empty(0))
    assert metric.compute() is None  # warnings are errors here


def test_observed_metric_whose_labels_are_all_on_another_rank():
    metric = with_other_rank(ObservedMetric(MeanAbsoluteError()), torch.tensor(4))
    with_other_rank(metric.metric, torch.tensor(6.0), torch.tensor(4))
    metric.update(torch.empty(0), torch.empty(0))
    assert metric.compute().item() == 1.5


def test_observed_metric_starts_afresh():
    metric = ObservedMetric(MeanAbsoluteError())
    metric.update(torch.tensor([1.0]), torch.tensor([9.0]))
    metric.reset()
    metric.update(torch.empty(0), torch.empty(0))
    assert metric.compute() is None
    metric.update(torch.tensor([1.0]), torch.tensor([2.0]))
    assert metric.compute().item() == 1.0


def test_observed_metric_keeps_a_copy():
    mine = MeanAbsoluteError()
    metric = ObservedMetric(mine)
    metric.update(torch.tensor([1.0]), torch.tensor([9.0]))
    assert not mine.update_called


def test_observed_metric_called_as_a_function_accumulates():
    metric = ObservedMetric(MeanAbsoluteError())
    for target in (2.0, 4.0):
        metric(torch.tensor([1.0]), torch.tensor([target]))
    assert metric.compute() == 2.0


def test_what_metrics_start_from_survives_memory_that_is_not_filled():
    mine = MeanAbsoluteError()
    with torch.device("meta"):
        metrics = TaskMetrics({"depth": Task("gaussian", metrics=mine)}, [0.5])
    metrics._apply(lambda tensor: torch.full_like(tensor, 7, device="cpu"))  # as to_empty may leave it
    for key, values in [("loss", (torch.tensor(6.0), torch.tensor(2.0))), ("MeanAbsoluteError", (torch.ones(2),) * 2)]:
        metric = metrics[f"val/depth/{key}"]
        metric.reset()
        metric.update(*values)
    assert metrics["val/depth/loss"].compute() == 3.0
    assert metrics["val/depth/MeanAbsoluteError"].compute() == 0.0
    assert metrics["val/depth/MeanAbsoluteError"].labels == 2


def test_a_metric_on_the_meta_device_is_refused():
    with torch.device("meta"):
        mine = MeanAbsoluteError()
    with pytest.raises(ValueError, match="found MeanAbsoluteError on the meta device, which forgets"):
        ObservedMetric(mine)
