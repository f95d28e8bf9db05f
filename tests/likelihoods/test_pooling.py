"""Samples that come in groups say what they say all at once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_uncertainty.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    Generic,
    HeteroscedasticGaussian,
    Laplace,
    Poisson,
)
from lightning_uncertainty.likelihoods.pooling import Pool

KINDS = [Gaussian(), Laplace(), Poisson(), Generic(), Categorical(), Bernoulli(), HeteroscedasticGaussian()]
UNIT = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)


def pooled(likelihood, outputs, groups, scales=UNIT):
    pool = Pool(likelihood)
    for group in outputs.split(groups):
        pool.add(likelihood.predicted(group, *scales), len(group))
    return pool.prediction()


@given(
    kind=st.sampled_from(KINDS),
    groups=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([1e-4, 1.0, 8.0]),
    places=st.sampled_from([(), (3,), (2, 2)]),
)
def test_groups_say_what_all_samples_say(kind, groups, seed, spread, places):
    draw = torch.Generator().manual_seed(seed)
    shape = (3, 4, *places)  # rows, channels
    outputs = torch.randn(shape, generator=draw) + spread * torch.randn(sum(groups), *shape, generator=draw)
    outputs = outputs.double()
    for found, expected in zip(pooled(kind, outputs, groups), kind.predicted(outputs, *UNIT), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_equal_samples_are_that_sample_to_the_last_bit(kind):
    outputs = torch.randn(1, 3, 4).expand(7, 3, 4)
    found, one = pooled(kind, outputs, 1, [one.float() for one in UNIT]), kind.predicted(outputs[:1], *UNIT)
    assert torch.equal(found.mean, one.mean)
    assert (found.epistemic == 0).all()
    for name in ("aleatoric", "total"):
        assert torch.equal(getattr(found, name).nan_to_num(), getattr(one, name).nan_to_num())


@pytest.mark.parametrize(("groups", "error"), [(1, 1e-5), (5, 1e-2), (64, 1e-5)])  # a group's mean is rounded
def test_a_small_spread_of_large_means_is_not_lost(groups, error):
    means = 1e4 + 0.01 * torch.randn(64, 7, generator=torch.Generator().manual_seed(0))
    found = pooled(Gaussian(), means, groups, [one.float() for one in UNIT])
    torch.testing.assert_close(found.epistemic.double(), means.double().std(0, correction=0), rtol=error, atol=0)
    torch.testing.assert_close(found.mean.double(), means.double().mean(0), rtol=1e-7, atol=0)


@pytest.mark.parametrize("groups", [1, 3, 8])
def test_squares_need_not_fit_float32(groups):
    means = 1e30 * torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    found = pooled(Gaussian(), means, groups, [one.float() for one in UNIT])
    expected = means.double().std(0, correction=0)
    torch.testing.assert_close(found.epistemic.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.total, found.epistemic)


def test_a_mean_that_is_infinite_in_every_sample_is_infinite_and_no_sample_disagrees():
    found = pooled(Poisson(), torch.full((4, 2), 1e3), 1, [one.float() for one in UNIT])
    assert (found.mean == torch.inf).all()
    assert (found.epistemic == 0).all()
