import json
from pathlib import Path

import pytest
import torch

from lightning_uncertainty.weightings import ConstrainedUncertaintyWeighting, GeometricLossWeighting
from tests.weightings._properties import assert_same, draw_losses, everywhere, make_tasks, some, train_step

VECTOR = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))["gls"]
HUGE = torch.finfo(torch.float32).max


def make(count, base_weights=None):
    return GeometricLossWeighting(base_weights).bind(make_tasks(count))


def test_vector():
    losses = torch.tensor(VECTOR["inputs"]["loss"], dtype=torch.float64)
    weighted = make(3).double()(losses, everywhere(3))
    assert weighted.total.item() == pytest.approx(VECTOR["expected"]["total"], rel=VECTOR["rtol"])
    expected = torch.tensor(VECTOR["expected"]["effective_weights"], dtype=torch.float64)
    assert_same(weighted.weights, expected, rtol=VECTOR["rtol"], atol=VECTOR["atol"])


@pytest.mark.parametrize("count", [1, 2, 7])
def test_it_is_the_root_of_the_product_and_so_is_its_gradient(count):
    present = some(count)
    losses = draw_losses(count).double().requires_grad_()
    total = make(count).double()(losses, present).total
    expected = losses[present].prod() ** (1 / present.sum())
    torch.testing.assert_close(total, expected)
    for found, wanted in zip(torch.autograd.grad(total, losses), torch.autograd.grad(expected, losses), strict=True):
        torch.testing.assert_close(found, wanted)


def test_base_weights_are_exponents():
    base = {"task0": 3.0, "task2": 0.0, "task3": 0.5}
    losses = draw_losses(4).double().requires_grad_()
    weighted = make(4, base).double()(losses, everywhere(4))
    expected = (losses[0] ** 3 * losses[1] * losses[3] ** 0.5) ** (1 / 4.5)
    torch.testing.assert_close(weighted.total, expected)
    torch.testing.assert_close(weighted.weights, *torch.autograd.grad(expected, losses))


def test_units_leave_the_direction():
    losses, units = draw_losses(5), torch.tensor([1e3, 1e-2, 1.0, 7.0, 0.1])
    one, other = (make(5)(x, everywhere(5)).weights for x in (losses, units * losses))
    ratios = other * units / one
    torch.testing.assert_close(ratios, ratios.log().mean().exp().expand(5))
    torch.testing.assert_close(ratios[0], units.log().mean().exp())


def test_it_is_the_optimum_of_uncertainty_weighting_whose_sigmas_have_a_fixed_product():
    """Of one exponent a, the constrained total at its optimum is T c times the mean, of one gradient too."""
    losses = draw_losses(4)
    tasks = dict.fromkeys(make_tasks(4), make_tasks(1)["task0"])
    learnt = train_step(ConstrainedUncertaintyWeighting().bind(tasks), losses, everywhere(4))
    mean = GeometricLossWeighting().bind(tasks)(losses, everywhere(4))
    factor = 4 * tasks["task0"].factor
    torch.testing.assert_close(learnt.total, factor * mean.total)
    torch.testing.assert_close(learnt.weights, factor * mean.weights)


@pytest.mark.parametrize(
    "losses", [[0.0, 1.0], [0.0, 0.0], [0.0] + [HUGE] * 39, [0.0] * 39 + [HUGE], [1e-30, 1e30, 1e30], [HUGE] * 40]
)
def test_totals_and_weights_are_finite(losses):
    losses = torch.tensor(losses, requires_grad=True)
    weighted = make(len(losses))(losses, everywhere(len(losses)))
    weighted.total.backward()
    assert weighted.total.isfinite()
    assert weighted.weights.isfinite().all()
    assert_same(losses.grad, weighted.weights)


def test_there_is_no_state():
    weighting = make(3)
    assert list(weighting.parameters()) == []
    assert weighting.state_dict().keys() == {"_extra_state"}
