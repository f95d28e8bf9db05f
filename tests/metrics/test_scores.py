import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from torch.distributions import Laplace, Normal

from lightning_uncertainty.metrics import CRPS, PredictiveNLL, Sharpness
from tests.metrics._value import value

NAN = float("nan")
SCORES = [
    *(lambda name=name: PredictiveNLL(name) for name in ("gaussian", "laplace")),
    *(lambda name=name: CRPS(name) for name in ("gaussian", "laplace")),
    Sharpness,
]
ORACLES = {"gaussian": (Normal, lambda std: std), "laplace": (Laplace, lambda std: std / math.sqrt(2))}
FROZEN = {
    "gaussian": lambda mean, std: stats.norm(mean, std),
    "laplace": lambda mean, std: stats.laplace(mean, std / math.sqrt(2)),
}
POINTS = [(0.0, 1.0, 0.0), (1.0, 0.3, 1.4), (-2.0, 2.5, 6.0), (100.0, 0.5, 99.9), (0.0, 1e-2, 3.0)]


def predictions(*shape):
    return torch.randn(shape), torch.rand(shape) + 0.1, torch.randn(shape)


@pytest.mark.parametrize("name", ORACLES)
def test_nll_is_the_mean_negative_log_density_with_constants(name):
    mean, std, target = predictions(7, 5)
    kind, scale = ORACLES[name]
    expected = -kind(mean, scale(std)).log_prob(target).mean()
    torch.testing.assert_close(value(PredictiveNLL(name), mean, std, target), expected)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", FROZEN)
def test_crps_is_the_integral_over_squared_differences_of_distribution_functions(name, point):
    mean, std, label = point
    cdf = FROZEN[name](mean, std).cdf
    cuts = np.unique([mean + k * std for k in (-40, -5, -2, -1, 0, 1, 2, 5, 40)] + [label])
    expected = sum(
        quad(lambda x: (cdf(x) - (x >= label)) ** 2, low, high, epsabs=1e-12)[0] for low, high in pairwise(cuts)
    )
    found = value(CRPS(name), *(torch.tensor([number], dtype=torch.float64) for number in point))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_crps_of_samples_is_a_mean_over_pairs():
    """E|X - y| - E|X - X'| / 2, the other form of the score."""
    draws = Laplace(0.5, 2.0).sample((200_000,))
    expected = (draws - 3.0).abs().mean() - (draws[::2] - draws[1::2]).abs().mean() / 2
    std = torch.tensor(2 * math.sqrt(2))
    found = value(CRPS("laplace"), torch.tensor(0.5), std, torch.tensor(3.0))
    assert found.item() == pytest.approx(expected.item(), abs=0.03)


@pytest.mark.parametrize("name", FROZEN)
def test_crps_without_spread_is_the_absolute_error(name):
    mean, target = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([1.0, 4.0, 1.0])
    assert value(CRPS(name), mean, torch.zeros(3), target).item() == 2.0


@pytest.mark.parametrize("metric", [PredictiveNLL, CRPS])
def test_scores_are_best_for_the_true_standard_deviation_and_distribution(metric):
    target = Laplace(0.0, 1 / math.sqrt(2)).sample((40_000,))
    true = value(metric("laplace"), torch.zeros(40_000), torch.ones(()), target)
    for name, std in (("laplace", 0.7), ("laplace", 1.5), ("gaussian", 1.0)):
        assert true < value(metric(name), torch.zeros(40_000), torch.tensor(std), target)


def test_sharpness_is_the_mean_standard_deviation_of_observed_labels():
    std = torch.tensor([[1.0, 2.0], [6.0, NAN]])
    assert value(Sharpness(), torch.zeros(2, 2), std, torch.tensor([[0.0, 5.0], [9.0, NAN]])).item() == 3.0


@pytest.mark.parametrize("make", SCORES)
def test_missing_labels_are_ignored_whatever_is_predicted_for_them(make):
    mean, std, target = predictions(6, 4)
    expected = value(make(), mean[:5], std[:5], target[:5])
    mean[5], std[5], target[5] = NAN, -1.0, NAN
    torch.testing.assert_close(value(make(), mean, std, target), expected)


@pytest.mark.parametrize("make", SCORES)
def test_nothing_observed_has_no_value(make):
    assert value(make(), torch.zeros(3), torch.ones(3), torch.full((3,), NAN)) is None
    assert value(make(), torch.zeros(0), torch.ones(0), torch.zeros(0)) is None


@pytest.mark.parametrize("make", SCORES)
def test_batches_and_ranks_add_up_to_the_whole(make):
    mean, std, target = predictions(90)
    whole = value(make(), mean, std, target)
    batches, other = make(), make()
    other.update(mean[:10], std[:10], target[:10])
    states = iter([other.total, other.count])
    batches.distributed_available_fn = lambda: True
    batches.dist_sync_fn = lambda tensor, group=None: [tensor, next(states)]
    for part in (slice(10, 17), slice(17, 90)):
        batches.update(mean[part], std[part], target[part])
    torch.testing.assert_close(batches.compute(), whole)


def test_a_task_wide_standard_deviation_broadcasts():
    mean, _, target = predictions(3, 2, 4)
    std = torch.tensor([[0.5], [2.0]])
    expected = value(PredictiveNLL(), mean, std.expand(3, 2, 4), target)
    torch.testing.assert_close(value(PredictiveNLL(), mean, std, target), expected)


def test_sums_of_many_batches_keep_their_digits():
    """A plain sum in float32 stays at 2**24 here."""
    metric = Sharpness()
    metric.total = torch.tensor([2.0**24, 0.0])
    metric.count += 2**24
    for _ in range(64):
        metric.update(torch.zeros(1), torch.ones(1), torch.zeros(1))
    assert metric.total.double().sum().item() == 2**24 + 64
    assert metric.count.item() == 2**24 + 64


def test_half_types_are_computed_in_float32():
    mean, std, target = (tensor.bfloat16() for tensor in predictions(50))
    expected = value(PredictiveNLL(), mean.float(), std.float(), target.float())
    torch.testing.assert_close(value(PredictiveNLL(), mean, std, target), expected, rtol=0, atol=0)


@pytest.mark.parametrize("make", SCORES[:4])
def test_a_diverged_network_shows(make):
    assert value(make(), torch.tensor([NAN, 0.0]), torch.ones(2), torch.zeros(2)).isnan()


def test_an_impossible_label_has_infinite_nll_in_every_later_batch():
    metric = PredictiveNLL()
    metric.update(torch.zeros(1), torch.ones(1), torch.tensor([math.inf]))
    assert value(metric, *predictions(4)).item() == math.inf


@pytest.mark.parametrize("make", SCORES)
@pytest.mark.parametrize("wrong", [-1.0, NAN])
def test_standard_deviations_without_meaning_are_refused_and_not_counted(make, wrong):
    metric = make()
    with pytest.raises(ValueError, match=f"std should be .*positive: found {wrong:g} in 1 of 2 places"):
        metric.update(torch.zeros(2), torch.tensor([1.0, wrong]), torch.zeros(2))
    assert metric.count == 0


def test_nll_needs_a_spread():
    with pytest.raises(ValueError, match="std should be positive: found 0 in 2 of 2 places"):
        PredictiveNLL().update(torch.zeros(2), torch.zeros(()), torch.zeros(2))


def test_shapes_that_would_pair_every_mean_with_every_label_are_refused():
    with pytest.raises(ValueError, match=r"mean should have the shape of target \[3\]: found \[3, 1\]"):
        CRPS().update(torch.zeros(3, 1), torch.ones(3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"std should have the shape of target \[3\] .* found \[3, 1\]"):
        CRPS().update(torch.zeros(3), torch.ones(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match=r"std should have the shape of target \[3, 1\] .* found \[3\]"):
        CRPS().update(torch.zeros(3, 1), torch.ones(3), torch.zeros(3, 1))


@pytest.mark.parametrize("metric", [PredictiveNLL, CRPS])
def test_unknown_distributions_are_refused(metric):
    with pytest.raises(ValueError, match="distribution should be 'gaussian' or 'laplace': found 'student'"):
        metric("student")
