import copy
import json
import math
from pathlib import Path

import pytest
import torch

from lightning_uncertainty.weightings import DynamicWeightAverage
from tests.weightings._properties import assert_same, draw_losses, everywhere, make_tasks, some, train_step

VECTOR = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))["dwa.T1"]


def run(weighting, epochs, start=0):
    """Train epochs, each a list of losses `[T]`, NaN where absent; return the weights of each one's last step."""
    found = []
    for epoch, steps in enumerate(epochs, start):
        for losses in torch.tensor(steps, dtype=torch.float64):
            weighting.start_epoch(epoch)
            weighted = train_step(weighting, losses.nan_to_num(), ~losses.isnan())
        found.append(weighted.weights)
    return found


def make(count, temperature=2.0, **options):
    return DynamicWeightAverage(temperature, **options).bind(make_tasks(count)).double()


def softmax_of(ratios, temperature=2.0):
    return len(ratios) * (torch.tensor(ratios, dtype=torch.float64) / temperature).softmax(0)


def test_vector():
    inputs = VECTOR["inputs"]
    found = run(make(3, inputs["T"]), [[inputs["loss_tm2"]], [inputs["loss_tm1"]], [[1.0, 2.0, 3.0]]])
    assert_same(found[0], torch.ones(3, dtype=torch.float64))
    assert_same(found[1], torch.ones(3, dtype=torch.float64))
    assert_same(found[2], torch.tensor(VECTOR["expected"]["weights"], dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_ratios_are_of_means_over_epochs():
    epochs = [[[1.0, 2.0], [3.0, 2.0]], [[1.0, 1.0]], [[0.5, 4.0], [0.7, 2.0], [0.3, 3.0]], [[9.0, 9.0]]]
    found = run(make(2), epochs)
    assert_same(found[2], softmax_of([0.5, 0.5]), rtol=1e-9, atol=0.0)
    assert_same(found[3], softmax_of([0.5, 3.0]), rtol=1e-9, atol=0.0)


def test_weights_change_with_the_first_step_of_an_epoch_and_no_other():
    weighting, seen = make(2), []
    for step in range(12):
        weighting.start_epoch(step // 3)
        seen.append(train_step(weighting, draw_losses(2, step).double(), everywhere(2)).weights.tolist())
    assert [step for step in range(1, 12) if seen[step] != seen[step - 1]] == [6, 9]


@pytest.mark.parametrize("skipped", [1, 5])
def test_epochs_need_not_follow_each_other(skipped):
    """As where an epoch had no batch, or training goes on after a resume elsewhere."""
    weighting = make(2)
    run(weighting, [[[4.0, 1.0]]])
    run(weighting, [[[2.0, 1.0]]], start=skipped)
    (found,) = run(weighting, [[[1.0, 1.0]]], start=9)
    assert_same(found, softmax_of([0.5, 1.0]), rtol=1e-9, atol=0.0)


def test_a_task_without_labels_in_an_epoch_keeps_its_ratio():
    nan = math.nan
    epochs = [[[4.0, 8.0]], [[2.0, 2.0]], [[1.0, nan], [3.0, nan]], [[1.0, 7.0]], [[1.0, 1.0]]]
    found = run(make(2), epochs)
    assert_same(found[3], softmax_of([1.0, 0.25]), rtol=1e-9, atol=0.0)
    assert_same(found[4], softmax_of([0.5, 3.5]), rtol=1e-9, atol=0.0)


def test_a_task_that_comes_late_has_a_ratio_of_one_until_it_has_two_epochs():
    nan = math.nan
    found = run(make(2), [[[4.0, nan]], [[2.0, nan]], [[2.0, 5.0]], [[2.0, 5.0]], [[1.0, 1.0]]])
    assert_same(found[2], softmax_of([0.5, 1.0]), rtol=1e-9, atol=0.0)
    assert_same(found[3], softmax_of([1.0, 1.0]), rtol=1e-9, atol=0.0)
    found = run(make(2), [[[4.0, nan]], [[2.0, nan]], [[2.0, nan]]])
    assert_same(found[2], torch.tensor([1.0, 0.0], dtype=torch.float64))  # alone


def test_absent_tasks_leave_the_softmax():
    weighting = make(3, base_weights={"task1": 0.0})
    run(weighting, [[[4.0, 1.0, 1.0]], [[2.0, 1.0, 3.0]]])
    weighting.start_epoch(2)
    weights = train_step(weighting, draw_losses(3).double(), everywhere(3)).weights
    assert_same(weights[[0, 2]], softmax_of([0.5, 3.0]), rtol=1e-9, atol=0.0)
    assert_same(weights[1], torch.tensor(0.0, dtype=torch.float64))


def test_a_repeated_epoch_goes_on_and_a_fit_anew_is_another_epoch():
    weighting = make(2)
    run(weighting, [[[4.0, 1.0]], [[2.0, 1.0]]])
    twin = copy.deepcopy(weighting)
    run(weighting, [[[4.0, 1.0]]], start=1)  # the same number: one epoch with a mean of 3
    run(twin, [[[4.0, 1.0]]], start=0)
    (one,), (other,) = (run(w, [[[1.0, 1.0]]], start=2) for w in (weighting, twin))
    assert_same(one, softmax_of([3 / 4, 1.0]), rtol=1e-9, atol=0.0)
    assert_same(other, softmax_of([4 / 2, 1.0]), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("steps", range(1, 9))
def test_it_resumes_in_the_middle_of_an_epoch(steps):
    """To the bit, whatever the module did meanwhile."""

    def train(weighting, steps):
        results = []
        for step in steps:
            weighting.start_epoch(step // 3)
            results.append(train_step(weighting, draw_losses(4, step), some(4, step)))
        return results

    whole, other = (DynamicWeightAverage().bind(make_tasks(4)) for _ in range(2))
    train(whole, range(steps))
    state = copy.deepcopy(whole.state_dict())
    train(other, range(steps // 3 * 3, 12))  # it has been told of the same epoch, and of later ones
    other.load_state_dict(state)
    assert_same(train(other, range(steps, 12)), train(whole, range(steps, 12)))


def test_a_checkpoint_of_an_earlier_epoch_is_not_taken_for_the_present_one():
    """The module was told of epoch 2; what it loads has counted epoch 1, which then ends."""
    older, module = make(2), make(2)
    run(older, [[[4.0, 1.0]], [[2.0, 1.0]]])
    run(module, [[[9.0, 9.0]]] * 3)
    module.load_state_dict(older.state_dict())
    (found,) = run(module, [[[1.0, 1.0]]], start=2)
    assert_same(found, softmax_of([0.5, 1.0]), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("losses", [[0.0, 1.0], [1e30, 1e-30], [3e38, 3e38]])
@pytest.mark.parametrize("temperature", [1e-3, 2.0])
def test_extreme_losses_leave_weights_finite(losses, temperature):
    weighting = DynamicWeightAverage(temperature).bind(make_tasks(2))
    for epoch, values in enumerate([losses, losses[::-1], losses, [1.0, 1.0]]):
        weighting.start_epoch(epoch)
        for _ in range(3):
            weights = train_step(weighting, torch.tensor(values), everywhere(2)).weights
        assert weights.sum() == pytest.approx(2.0)
        assert (weights >= 0).all()


def test_a_loss_that_is_not_finite_is_left_out_of_the_mean():
    """On a GPU it is told with the next logged row."""
    weighting = make(2)
    for epoch, losses in enumerate([[4.0, 1.0], [math.inf, 1.0], [math.nan, 1.0]]):
        weighting.start_epoch(epoch // 2)
        weighting(torch.tensor(losses).double().requires_grad_(), everywhere(2))
    run(weighting, [[[2.0, 1.0]]], start=1)
    (found,) = run(weighting, [[[1.0, 1.0]]], start=2)
    assert_same(found, softmax_of([0.5, 1.0]), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperatures_that_are_none(temperature):
    with pytest.raises(ValueError, match="temperature should be positive and finite: found"):
        DynamicWeightAverage(temperature)
