import math

import pytest
import torch

from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.metrics import BalancedLoss, TaskLoss
from lightning_uncertainty.weightings import UncertaintyWeighting
from tests.metrics._other_rank import NAN, with_other_rank


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


def test_balanced_loss_adds_a_normalised_loss_as_it_is():
    metric = BalancedLoss({"depth": 0.5, "mass": 2.0}, normalised=["mass"])
    metric.update(torch.tensor([6.0, -9.0]), torch.tensor([2.0, 3.0]))
    assert metric.compute().item() == pytest.approx(0.5 * math.log(3.0) + 2.0 * -3.0)
    metric.reset()
    metric.update(torch.tensor([0.0, -9.0]), torch.tensor([0.0, 3.0]))
    assert metric.compute().item() == pytest.approx(-6.0)


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
