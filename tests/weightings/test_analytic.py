import json
from pathlib import Path

import pytest
import torch

from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.weightings import AnalyticUncertaintyWeighting, UncertaintyWeighting
from lightning_uncertainty.weightings.analytic import DEFAULT_DECAY
from tests.weightings._properties import assert_same, draw_losses, everywhere, make_tasks, some, train_step

VECTORS = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))


def gaussians(count, decay):
    tasks = {f"task{i}": as_likelihood("gaussian") for i in range(count)}
    return AnalyticUncertaintyWeighting(decay).bind(tasks)


def weighted_mean(history, decay):
    """The mean of a task's losses, each step back counting `decay` times less."""
    factors = [decay**age for age in reversed(range(len(history)))]
    return sum(f * x for f, x in zip(factors, history, strict=True)) / sum(factors)


@pytest.mark.parametrize("decay", [0.0, 0.5, DEFAULT_DECAY])
def test_weights_and_log_variances_follow_the_running_mean(decay):
    tasks = make_tasks(8)
    weighting = AnalyticUncertaintyWeighting(decay).bind(tasks)
    history = {name: [] for name in tasks}
    for step in range(12):
        losses, present = draw_losses(8, step), some(8, step)
        weighted = train_step(weighting, losses, present)
        for i, (name, likelihood) in enumerate(tasks.items()):
            if present[i]:
                history[name].append(losses[i].item())
            if not history[name]:
                assert weighted.log_variances[i].isnan()
                continue
            mean = weighted_mean(history[name], decay)
            assert weighted.log_variances[i].item() == pytest.approx(likelihood.optimum(mean), rel=1e-4, abs=1e-5)
            weight = likelihood.penalty / (likelihood.exponent * mean) if present[i] else 0.0
            assert weighted.weights[i].item() == pytest.approx(weight, rel=1e-4)


def test_constant_losses_have_their_mean_at_any_step():
    weighting = gaussians(1, DEFAULT_DECAY)
    for _ in range(60):
        assert train_step(weighting, torch.tensor([9.0]), everywhere(1)).log_variances.exp().item() == pytest.approx(
            9.0
        )


def test_nothing_to_learn():
    assert list(AnalyticUncertaintyWeighting().bind(make_tasks(3)).parameters()) == []


def test_the_total_is_that_of_uncertainty_weighting_at_the_same_log_variances():
    tasks = make_tasks(8)
    analytic = AnalyticUncertaintyWeighting().bind(tasks)
    for step in range(4):
        losses, present = draw_losses(8, step), some(8, step)
        weighted = train_step(analytic, losses, present)
    start = {name: s for name, s in zip(tasks, weighted.log_variances.tolist(), strict=True) if s == s}
    learnt = UncertaintyWeighting(start=start).bind(tasks)(losses, present)
    assert_same(weighted[:2], (learnt.total.detach(), learnt.weights), rtol=1e-5, atol=1e-6)


def test_log_variances_are_constants_to_the_gradient():
    losses = torch.tensor([4.0, 9.0], requires_grad=True)
    gaussians(2, 0.0)(losses, everywhere(2)).total.backward()
    assert losses.grad.tolist() == pytest.approx([1 / 8, 1 / 18])  # of a total that is ½ (1 + log L) it would be 1/(2L)
    once = losses.grad.clone()
    weighting = gaussians(2, DEFAULT_DECAY)
    train_step(weighting, torch.tensor([400.0, 900.0]), everywhere(2))
    losses.grad = None
    weighted = weighting(losses, everywhere(2))
    weighted.total.backward()
    assert_same(losses.grad, weighted.weights, rtol=1e-6, atol=0.0)
    assert (losses.grad < once / 10).all()


@pytest.mark.parametrize("loss", [0.0, -1.0, float("inf"), float("nan")])
def test_losses_without_a_logarithm_are_not_averaged(loss):
    weighting = gaussians(1, 0.5)
    unusable = weighting(torch.tensor([loss]), everywhere(1))
    assert unusable.log_variances.isnan().all()
    assert weighting.steps.tolist() == [0.0]
    for usable in (4.0, loss, 9.0):
        weighted = weighting(torch.tensor([usable]), everywhere(1))
    assert weighted.log_variances.exp().item() == pytest.approx(weighted_mean([4.0, 9.0], 0.5))


def test_evaluation_uses_the_means_of_training():
    weighting = gaussians(2, 0.5)
    train_step(weighting, torch.tensor([4.0, 1.0]), torch.tensor([True, False]))
    weighting.eval()
    weighted = weighting(torch.tensor([100.0, 25.0]), everywhere(2))
    assert weighted.weights.tolist() == pytest.approx([1 / 8, 1 / 50])  # never trained: its loss of now
    assert weighted.log_variances.exp().tolist() == pytest.approx([4.0, 25.0])


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_decay_lies_between_zero_and_one(decay):
    with pytest.raises(ValueError, match=r"decay should lie in \[0, 1\): found"):
        AnalyticUncertaintyWeighting(decay)


def test_vector_uwo():
    """With decay 0 it is Kirchdorfer's UW-O, which divides each loss by itself."""
    vector = VECTORS["uw.uwo"]
    weighted = gaussians(3, 0.0).double()(torch.tensor(vector["inputs"]["loss"], dtype=torch.float64), everywhere(3))
    expected = torch.tensor(vector["expected"]["weights_gaussian_form"], dtype=torch.float64)
    assert_same(weighted.weights, expected, rtol=vector["rtol"], atol=vector["atol"])


@pytest.mark.parametrize("kind", [lambda: AnalyticUncertaintyWeighting(0.0), UncertaintyWeighting])
def test_vector_equivalences(kind):
    """With every log-variance at its optimum the network is pulled along sum of grad L / (2 L)."""
    vector = VECTORS["uw.equivalences"]
    values, gradients = (torch.tensor(vector["inputs"][what], dtype=torch.float64) for what in ("loss", "grads"))
    weighting = kind().bind({f"task{i}": as_likelihood("gaussian") for i in range(3)}).double()
    network = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    weighting(values + gradients @ network, everywhere(3)).total.backward()
    expected = torch.tensor(vector["expected"]["uw_profiled"], dtype=torch.float64)
    assert_same(network.grad, expected, rtol=vector["rtol"], atol=1e-9)
    direction = torch.tensor(vector["expected"]["direction"], dtype=torch.float64)
    assert_same(network.grad / network.grad.norm(), direction, rtol=vector["rtol"], atol=1e-9)
