import pytest
import torch

from lightning_uncertainty.weightings import FixedWeighting
from tests.weightings._properties import assert_same, draw_losses, everywhere, make_tasks, train_step


def test_without_weights_it_is_the_sum():
    losses = draw_losses(5)
    weighted = FixedWeighting().bind(make_tasks(5))(losses, everywhere(5))
    torch.testing.assert_close(weighted.total, losses.sum())
    assert weighted.weights.tolist() == [1.0] * 5
    assert weighted.log_variances is None


def test_weights_are_a_dot_product():
    losses = draw_losses(3)
    weighting = FixedWeighting({"task2": 7.0, "task0": 0.1}).bind(make_tasks(3))
    weighted = weighting(losses, everywhere(3))
    torch.testing.assert_close(weighted.total, torch.tensor([0.1, 1.0, 7.0]) @ losses)
    torch.testing.assert_close(weighted.weights, torch.tensor([0.1, 1.0, 7.0]))


def test_weights_do_not_depend_on_the_likelihood_and_never_change():
    weighting = FixedWeighting({"task0": 0.3}).bind(make_tasks(8))
    seen = [train_step(weighting, draw_losses(8, step), everywhere(8)).weights for step in range(3)]
    assert_same(seen[1:], [seen[0], seen[0]])
    assert list(weighting.parameters()) == []


def test_weight_zero_switches_a_task_off():
    losses = torch.tensor([4.0, 3.0], requires_grad=True)
    total = FixedWeighting({"task0": 0.0}).bind(make_tasks(2))(losses, everywhere(2)).total
    total.backward()
    assert total == 3.0
    assert losses.grad.tolist() == [0.0, 1.0]


def test_weights_are_a_setting_and_not_in_checkpoints():
    old, new = FixedWeighting({"task0": 5.0}).bind(make_tasks(2)), FixedWeighting({"task0": 2.0}).bind(make_tasks(2))
    assert set(old.state_dict()) == {"_extra_state"}
    new.load_state_dict(old.state_dict())
    assert new(torch.ones(2), everywhere(2)).total == 3.0


def test_weights_given_are_copied():
    weights = {"task0": 2.0}
    weighting = FixedWeighting(weights)
    weights["task0"] = 100.0
    assert weighting.bind(make_tasks(1))(torch.ones(1), everywhere(1)).total == 2.0


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_make_no_sense(weight):
    with pytest.raises(ValueError, match=r"weights should be finite numbers, at least 0: found .* for task 'task1'"):
        FixedWeighting({"task1": weight}).bind(make_tasks(2))


def test_weights_of_unknown_tasks():
    with pytest.raises(ValueError, match=r"weights should name registered tasks \(task0, task1\): found task7"):
        FixedWeighting({"task7": 1.0}).bind(make_tasks(2))
