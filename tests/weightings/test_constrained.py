import json
from pathlib import Path

import pytest
import torch

from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.weightings import ConstrainedUncertaintyWeighting, UncertaintyWeighting
from tests.weightings._properties import assert_same, draw_losses, everywhere, make_tasks, some, train_step

VECTORS = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))


def gaussians(count, *arguments):
    tasks = {f"task{i}": as_likelihood("gaussian") for i in range(count)}
    return ConstrainedUncertaintyWeighting(*arguments).bind(tasks).double()


@pytest.mark.parametrize("name", ["uw.constrained.C0", "uw.constrained.C1.5"])
def test_vector_constrained(name):
    vector = VECTORS[name]
    expected, tolerances = vector["expected"], {"rtol": 1e-6, "atol": 1e-7}
    losses = torch.tensor(vector["inputs"]["loss"], dtype=torch.float64)
    weighting = gaussians(4, vector["inputs"]["C"] / 4)
    weighted = weighting(losses, everywhere(4))
    s_opt = torch.tensor(expected["s_opt"], dtype=torch.float64)
    assert_same(weighting.optimum(losses), s_opt, **tolerances)
    assert_same(weighted.log_variances, s_opt, **tolerances)
    assert_same(weighted.weights, torch.tensor(expected["weight_opt"], dtype=torch.float64), **tolerances)
    assert weighted.total.item() == pytest.approx(expected["objective_opt"], rel=1e-6)


def test_the_mean_over_present_tasks_is_kept():
    weighting = ConstrainedUncertaintyWeighting(0.7).bind(make_tasks(10))
    for step in range(10):
        losses, present = draw_losses(10, step), some(10, step)
        weighted = train_step(weighting, losses, present, lr=1e-3)
        assert weighted.log_variances[present].mean().item() == pytest.approx(0.7, abs=1e-5)
        assert weighted.total > 0


@pytest.mark.parametrize("base_weights", [{}, {"task1": 3.0, "task4": 0.0}])
def test_the_optimum_is_stationary_for_any_likelihoods(base_weights):
    """With its log-variances at `optimum`, no exchange between tasks lowers the total."""
    tasks = make_tasks(8)
    losses, present = draw_losses(8).double(), torch.tensor([True] * 6 + [False, True])
    weighting = ConstrainedUncertaintyWeighting(0.3, 0.0, base_weights).bind(tasks).double()
    counted = present & (weighting.base_weight > 0)
    optimum = weighting.optimum(losses, present)
    assert optimum[counted].mean().item() == pytest.approx(0.3)
    with torch.no_grad():
        weighting.offset.copy_(optimum.where(counted, 0.0))
    weighted = weighting(losses, present)
    weighted.total.backward()
    assert_same(weighting.offset.grad, torch.zeros(8, dtype=torch.float64), rtol=0.0, atol=1e-9)
    for seed in range(5):
        exchange = torch.randn(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(0.1)
        with torch.no_grad():
            weighting.offset.copy_(optimum.where(counted, 0.0) + exchange)
        assert weighting(losses, present).total > weighted.total


def test_ratios_of_sigma_are_those_of_uncertainty_weighting():
    losses = draw_losses(5).double()
    free = UncertaintyWeighting().bind({f"task{i}": as_likelihood("gaussian") for i in range(5)})
    shift = gaussians(5).optimum(losses) - free.optimum(losses)
    assert_same(shift, shift[:1].expand(5), rtol=1e-5, atol=1e-5)


def test_tasks_that_come_and_go_have_unbiased_ratios():
    """A rare task is not dragged along while it is absent."""
    torch.manual_seed(0)
    weighting = gaussians(3)
    losses = torch.tensor([4.0, 0.5, 30.0], dtype=torch.float64)
    for _ in range(3000):
        train_step(weighting, losses, torch.rand(3) < torch.tensor([0.9, 0.5, 0.1]), lr=0.05)
    s = weighting(losses, everywhere(3)).log_variances
    assert_same(s - s[0], losses.log() - losses[0].log(), rtol=0.0, atol=1e-3)


def test_one_task_has_a_constant_weight():
    weighting = gaussians(1, 0.0)
    for loss in (1.0, 50.0):
        assert train_step(weighting, torch.tensor([loss]), everywhere(1)).weights == 0.5


def test_sigma_is_called_relative():
    assert all(meaning.startswith("relative") for meaning in gaussians(2).meanings().values())


@pytest.mark.parametrize("mean", [float("nan"), float("inf")])
def test_the_mean_is_finite(mean):
    with pytest.raises(ValueError, match="mean_log_variance should be finite: found"):
        ConstrainedUncertaintyWeighting(mean)
