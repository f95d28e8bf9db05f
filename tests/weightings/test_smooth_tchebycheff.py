import json
import math
from pathlib import Path

import pytest
import torch

from lightning_uncertainty.weightings import SmoothTchebycheff
from tests._numbers import float64
from tests.weightings._properties import assert_same, draw_losses, everywhere, make_tasks, train_step

VECTORS = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))
HUGE = torch.finfo(torch.float32).max


def make(count, *arguments, **options):
    return SmoothTchebycheff(*arguments, **options).bind(make_tasks(count)).double()


def step(weighting, epoch, losses):
    losses = float64(losses)
    weighting.start_epoch(epoch)
    return train_step(weighting, losses.nan_to_num(), ~losses.isnan())


# -- the paper's formula -----------------------------------------------------------------------------------------------


def test_vector_paper_form():
    vector = VECTORS["stch.paper_form"]
    inputs, expected = vector["inputs"], vector["expected"]
    by_name = {key: {f"task{i}": x for i, x in enumerate(inputs[key])} for key in ("weights", "ideal")}
    weighting = make(3, inputs["mu"], by_name["weights"], by_name["ideal"], nadir_epoch=None)
    weighted = weighting(float64(inputs["loss"]), everywhere(3))
    assert weighted.total.item() == pytest.approx(expected["value"], rel=1e-7)
    assert_same(weighted.weights, float64(expected["effective_weights"]), rtol=1e-6, atol=0.0)
    least = make(3, 1e-3, by_name["weights"], by_name["ideal"], nadir_epoch=None)
    assert least(float64(inputs["loss"]), everywhere(3)).total.item() == pytest.approx(
        expected["tchebycheff"], rel=1e-6
    )


@pytest.mark.parametrize("temperature", [0.05, 1.0, 30.0])
def test_the_papers_formula_and_its_gradient(temperature):
    preferences, ideal = {"task0": 0.5, "task3": 2.0}, {"task1": 0.3}
    losses = draw_losses(5).double().requires_grad_()
    weighted = make(5, temperature, preferences, ideal, nadir_epoch=None)(losses, everywhere(5))
    terms = float64([0.5, 1, 1, 2, 1]) * (losses - float64([0, 0.3, 0, 0, 0]))
    expected = temperature * torch.logsumexp(terms / temperature, 0)
    torch.testing.assert_close(weighted.total, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weighted.weights, *torch.autograd.grad(expected, losses), rtol=1e-6, atol=1e-12)


def test_the_papers_formula_needs_no_epochs():
    weighting = make(2, nadir_epoch=None)
    assert not weighting.needs_epoch
    before = step(weighting, 0, [1.0, 2.0])
    assert_same(step(weighting, 9, [1.0, 2.0]), before)


# -- the paper's code --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", VECTORS["stch"]["expected"]["rows"], ids=lambda row: f"mu={row['mu']:g}")
def test_vector_stch(row):
    losses = VECTORS["stch"]["inputs"]["loss"]
    weighting = make(3, row["mu"], nadir_epoch=0)
    step(weighting, 0, VECTORS["stch"]["inputs"]["nadir"])
    weighted = step(weighting, 1, losses)
    assert_same(weighted.weights, float64(row["effective_weights_libmtl"]), rtol=1e-8, atol=1e-12)
    assert weighted.total.item() == pytest.approx(3 * row["smooth_max"], rel=1e-8)
    less = 3 * math.log(max(losses))  # the code subtracts the greatest term and does not add it again
    assert weighted.total.item() - less == pytest.approx(row["libmtl_value"], rel=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 30.0])
def test_the_codes_formula_and_its_gradient(temperature):
    preferences = {"task0": 0.5, "task2": 0.0}
    weighting = make(4, temperature, preferences, nadir_epoch=1)
    nadir, losses = draw_losses(4, 1).double(), draw_losses(4, 2).double().requires_grad_()
    step(weighting, 1, nadir.tolist())
    weighting.start_epoch(2)
    weighted = weighting(losses, everywhere(4))
    kept = torch.tensor([0, 1, 3])
    terms = float64([0.5, 1, 1]) * (losses[kept] / nadir[kept]).log()
    expected = 3 * temperature * torch.logsumexp(terms / temperature, 0)
    torch.testing.assert_close(weighted.total, expected)
    torch.testing.assert_close(weighted.weights, *torch.autograd.grad(expected, losses))


def test_warm_up_is_a_sum_of_logs_until_the_end_of_the_epoch_of_the_nadir():
    weighting = make(2, nadir_epoch=2, preferences={"task0": 0.5})
    for epoch in range(3):
        for losses in ([0.5, 4.0], [0.25, 2.0]):
            weighted = step(weighting, epoch, losses)
            assert weighted.total.item() == pytest.approx(0.5 * math.log(losses[0]) + math.log(losses[1]))
            assert_same(weighted.weights, float64([0.5 / losses[0], 1 / losses[1]]), rtol=1e-12, atol=0.0)
    step(weighting, 3, [9.0, 9.0])
    assert_same(weighting.nadir, float64([0.375, 3.0]))  # means of epoch 2 alone
    step(weighting, 4, [9.0, 9.0])
    assert_same(weighting.nadir, float64([0.375, 3.0]))


def test_at_its_default_ratios_of_weights_are_those_of_inverse_nadirs():
    weighting = make(3, nadir_epoch=0)
    step(weighting, 0, [1.0, 10.0, 0.1])
    for losses in ([0.5, 0.5, 0.5], [1.0, 30.0, 1e-3]):
        weights = step(weighting, 1, losses).weights
        torch.testing.assert_close(weights / weights[0], float64([1.0, 0.1, 10.0]))


def test_units_do_not_matter():
    units = float64([1e3, 1e-2, 1.0])
    one, other = make(3, 0.3, nadir_epoch=0), make(3, 0.3, nadir_epoch=0)
    for epoch in range(4):
        losses = draw_losses(3, epoch).double()
        weights = step(one, epoch, losses.tolist()).weights
        torch.testing.assert_close(step(other, epoch, (units * losses).tolist()).weights * units, weights)


def test_a_task_without_labels_in_the_epoch_of_the_nadir_takes_the_next():
    nan, weighting = math.nan, make(2, 0.5, nadir_epoch=1)
    for epoch, losses in enumerate(([2.0, 5.0], [1.0, nan], [0.5, nan], [0.5, 4.0])):
        weighted = step(weighting, epoch, losses)
        assert weighting.nadir.tolist() == [0.0 if epoch < 2 else 1.0, 0.0]
    assert_same(weighted.weights, float64([2.0, 0.25]), rtol=1e-12, atol=0.0)  # each for itself
    assert weighted.total.item() == pytest.approx(math.log(0.5) + math.log(4.0))
    weights = step(weighting, 4, [0.5, 2.0]).weights
    assert_same(weighting.nadir, float64([1.0, 4.0]))
    assert_same(weights, float64([2.0, 0.5]), rtol=1e-12, atol=0.0)


def test_a_nadir_is_kept_when_it_is_fitted_anew():
    weighting = make(2, 0.5, nadir_epoch=1)
    for epoch, losses in enumerate(([2.0, 5.0], [1.0, 2.0], [0.5, 1.0])):
        step(weighting, epoch, losses)
    for epoch in range(3):
        step(weighting, epoch, [7.0, 7.0])
    assert_same(weighting.nadir, float64([1.0, 2.0]))


@pytest.mark.parametrize("stop", range(1, 8))
def test_it_resumes_in_the_middle_of_an_epoch(stop):
    def train(weighting, steps):
        return [step(weighting, i // 3, draw_losses(3, i).tolist()) for i in steps]

    whole, other = make(3, 0.5, nadir_epoch=1), make(3, 0.5, nadir_epoch=1)
    train(whole, range(stop))
    state = whole.state_dict()
    train(other, range(stop // 3 * 3, 12))
    other.load_state_dict(
        {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
    )
    assert_same(train(other, range(stop, 12)), train(whole, range(stop, 12)))


@pytest.mark.parametrize("options", [{"nadir_epoch": None}, {"nadir_epoch": 0}, {"nadir_epoch": 5}])
@pytest.mark.parametrize("losses", [[0.0, 1.0], [0.0, 0.0], [1e-30, HUGE / 4], [HUGE / 4, HUGE / 4]])
@pytest.mark.parametrize("temperature", [1e-2, 1.0])
def test_totals_and_weights_are_finite(temperature, losses, options):
    weighting = SmoothTchebycheff(temperature, **options).bind(make_tasks(2))
    for epoch, values in enumerate((losses, losses[::-1], losses)):
        weighting.start_epoch(epoch)
        leaf = torch.tensor(values, requires_grad=True)
        weighted = weighting(leaf, everywhere(2))
        weighted.total.backward()
        assert weighted.total.isfinite()
        assert weighted.weights.isfinite().all()
        assert_same(leaf.grad, weighted.weights)


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature should be positive and finite"),
        ({"temperature": math.nan}, "temperature should be positive and finite"),
        ({"nadir_epoch": -1}, "nadir_epoch should be a whole number, at least 0, or None: found -1"),
        ({"nadir_epoch": 1.5}, "nadir_epoch should be a whole number"),
        ({"ideal": {"task0": 1.0}}, r"the paper's formula, which has no nadir: found nadir_epoch=4; give nadir_epoch="),
        ({"preferences": {"task0": -1.0}}, "preferences should be finite numbers, at least 0"),
        ({"preferences": {"other": 1.0}}, "preferences should name registered tasks"),
        ({"ideal": {"task0": math.inf}, "nadir_epoch": None}, "ideal should be finite numbers"),
    ],
)
def test_arguments_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        SmoothTchebycheff(**options).bind(make_tasks(1))
