import math
import sys

import pytest
import torch
from matplotlib import pyplot
from scipy import stats
from torch.distributions import Laplace, Normal

from lightning_uncertainty.metrics import IntervalCoverage
from tests.metrics._value import value

NAN = float("nan")
LEVELS = (0.5, 0.68, 0.9, 0.95, 0.999)
SAMPLERS = {"gaussian": Normal, "laplace": lambda mean, std: Laplace(mean, std / math.sqrt(2))}


def sample(name, count=20_000):
    mean, std = 10 * torch.randn(count), torch.rand(count) + 0.1
    return mean, std, SAMPLERS[name](mean, std).sample()


def all_within_sampling_error(shares, count):
    """Whether every share could be of its level: two-sided binomial tests at 1e-4."""
    return all(
        stats.binomtest(round(share.item() * count), count, level).pvalue > 1e-4
        for level, share in zip(LEVELS, shares.values(), strict=True)
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_true_distributions_are_covered_at_every_level(name):
    mean, std, target = sample(name)
    assert all_within_sampling_error(value(IntervalCoverage(LEVELS, name), mean, std, target), len(target))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_standard_deviation_wrong_by_ten_percent_is_found(name, factor):
    mean, std, target = sample(name)
    shares = value(IntervalCoverage(LEVELS, name), mean, factor * std, target)
    assert not all_within_sampling_error(shares, len(target))
    for level, share in zip(LEVELS[:4], list(shares.values())[:4], strict=True):
        assert (share < level) == (factor < 1)


def test_the_other_distribution_is_found():
    mean, std, target = sample("laplace")
    assert not all_within_sampling_error(value(IntervalCoverage(LEVELS, "gaussian"), mean, std, target), len(target))


@pytest.mark.parametrize(("name", "oracle"), [("gaussian", stats.norm()), ("laplace", stats.laplace(0, 0.5**0.5))])
@pytest.mark.parametrize("level", LEVELS)
def test_intervals_end_at_quantiles(name, oracle, level):
    end = oracle.ppf((1 + level) / 2)
    inside, outside = 5 + 3 * end * (1 - 1e-6), 5 + 3 * end * (1 + 1e-6)
    target = torch.tensor([inside, outside, 10 - inside, 10 - outside], dtype=torch.float64)
    shares = value(IntervalCoverage([level], name), torch.full_like(target, 5), torch.tensor(3.0), target)
    assert [share.item() for share in shares.values()] == [0.5]


def test_names_are_percentages():
    metric = IntervalCoverage([0.57, 0.683, 0.999])
    assert list(value(metric, torch.zeros(1), torch.ones(1), torch.zeros(1))) == [
        "coverage_57",
        "coverage_68.3",
        "coverage_99.9",
    ]


def test_without_spread_the_interval_is_a_point():
    shares = value(IntervalCoverage(), torch.zeros(4), torch.zeros(4), torch.tensor([0.0, 1e-6, -1.0, 0.0]))
    assert {share.item() for share in shares.values()} == {0.5}


def test_missing_labels_are_ignored_whatever_is_predicted_for_them():
    mean, std, target = sample("gaussian", 50)
    expected = value(IntervalCoverage(), mean[:40], std[:40], target[:40])
    mean[40:], std[40:], target[40:] = NAN, -1.0, NAN
    assert value(IntervalCoverage(), mean, std, target) == expected


def test_nothing_observed_gives_no_numbers_and_no_plot():
    metric = IntervalCoverage()
    assert value(metric, torch.zeros(3), torch.ones(3), torch.full((3,), NAN)) == {}
    with pytest.raises(ValueError, match="a plot should be of observed labels: found none"):
        metric.plot()


def test_batches_and_ranks_add_up_to_the_whole():
    mean, std, target = sample("laplace", 99)
    whole = value(IntervalCoverage(), mean, std, target)
    here, other = IntervalCoverage(), IntervalCoverage()
    other.update(mean[:10], std[:10], target[:10])
    states = iter([other.covered, other.count, other.undefined])
    here.distributed_available_fn = lambda: True
    here.dist_sync_fn = lambda tensor, group=None: [tensor, next(states)]
    for part in (slice(10, 17), slice(17, 99)):
        here.update(mean[part], std[part], target[part])
    assert here.compute() == whole


def test_a_diverged_network_shows_also_after_healthy_batches():
    metric = IntervalCoverage()
    metric.update(torch.tensor([NAN, 0.0]), torch.ones(2), torch.zeros(2))
    assert all(share.isnan() for share in value(metric, *sample("gaussian", 10)).values())
    metric.reset()
    assert not any(share.isnan() for share in value(metric, *sample("gaussian", 10)).values())


@pytest.mark.parametrize("wrong", [-1.0, NAN])
def test_standard_deviations_without_meaning_are_refused_and_not_counted(wrong):
    metric = IntervalCoverage()
    with pytest.raises(ValueError, match=f"std should be zero or positive: found {wrong:g} in 1 of 2 places"):
        metric.update(torch.zeros(2), torch.tensor([1.0, wrong]), torch.zeros(2))
    assert metric.count == 0


@pytest.mark.parametrize("levels", [(), (0.0,), (1.0,), (95,), (0.5, 0.5), (NAN,)])
def test_levels_that_are_no_probabilities_are_refused(levels):
    with pytest.raises(ValueError, match="levels should be between 0 and 1, once each"):
        IntervalCoverage(levels)


def test_unknown_distributions_are_refused():
    with pytest.raises(ValueError, match="distribution should be 'gaussian' or 'laplace': found 'student'"):
        IntervalCoverage(distribution="student")


def test_a_plot_shows_observed_against_nominal_coverage_with_the_diagonal():
    metric = IntervalCoverage([0.9, 0.5])
    shares = value(metric, *sample("gaussian", 100))
    figure, ax = metric.plot()
    diagonal, line = ax.get_lines()
    assert figure is ax.get_figure()
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert line.get_xydata().tolist() == [[0.5, shares["coverage_50"].item()], [0.9, shares["coverage_90"].item()]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("nominal coverage", "observed coverage")


def test_a_plot_goes_into_axes_that_are_given():
    metric = IntervalCoverage()
    metric.update(*sample("gaussian", 10))
    own_figure, own = pyplot.subplots()
    assert metric.plot(own) == (own_figure, own)


def test_a_plot_without_matplotlib_names_the_extra(monkeypatch):
    metric = IntervalCoverage()
    metric.update(*sample("gaussian", 10))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-uncertainty\[plot\]'"):
        metric.plot()
