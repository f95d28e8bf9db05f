import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_uncertainty.trials import Mean
from lightning_uncertainty.trials._mean import MOST_SEEDS, Lead

NUMBERS = st.lists(st.floats(-100, 100), min_size=2, max_size=20)


@given(NUMBERS)
def test_the_interval_is_that_of_scipy(values):
    mean = Mean.of(values)
    if mean.std > 1e-6:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (mean.mean - mean.interval, mean.mean + mean.interval) == pytest.approx((low, high))


def test_one_seed_has_no_interval():
    assert math.isnan(Mean.of([3.0]).interval)
    assert Mean.of([3.0]).text() == "3"
    assert Mean.of([3.0]).text(seeds=2) == "3 (n=1)"
    assert Mean.of([1.0, 3.0]).text(".2f", seeds=2) == "2.00 ± 13"


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=9))
def test_a_lead_is_tested_as_scipy_does(pairs):
    ours, theirs = ({seed: pair[side] for seed, pair in enumerate(pairs)} for side in (0, 1))
    lead = Lead.of(ours, theirs)
    if lead.mean.std > 1e-6:
        assert lead.p == pytest.approx(stats.ttest_rel([p[0] for p in pairs], [p[1] for p in pairs]).pvalue, abs=1e-9)


def test_only_seeds_that_both_have_are_paired():
    lead = Lead.of({0: 1.0, 1: 5.0, 7: 2.0}, {1: 4.0, 0: 0.5, 3: 9.0})
    assert lead.mean.values == (0.5, 1.0)
    assert Lead.of({0: 1.0}, {1: 1.0}).p == Lead.of({0: 1.0}, {0: 2.0}).p == 1.0
    assert Lead.of({0: 1.0, 1: math.nan}, {0: 1.0, 1: 1.0}).p == 1.0
    assert Lead.of({0: 1.0, 1: 2.0}, {0: 0.0, 1: 1.0}).p == 0.0
    assert Lead.of({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1.0


@settings(max_examples=20, deadline=None)
@given(st.floats(0.4, 3.0))
def test_as_many_seeds_as_it_says_have_the_power(effect):
    lead = Lead(Mean(effect, 1.0, (0.0, 1.0)))
    needed = lead.seeds_needed()

    def power(count):
        return stats.nct.sf(stats.t.isf(0.025, count - 1), count - 1, effect * count**0.5)

    assert power(needed) > 0.74
    assert needed == 2 or power(needed - 1) < 0.86


def test_seeds_that_nobody_can_say():
    assert Lead.of({0: 1.0}, {0: 0.0}).seeds_needed() is None
    assert Lead.of({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}).seeds_needed() is None
    assert Lead(Mean(1e-6, 1.0, (0.0, 1.0))).seeds_needed() == MOST_SEEDS
    assert Lead.of({0: 1.0, 1: 1.0}, {0: 0.0, 1: 0.0}).seeds_needed() == 2


def test_intervals_are_written_without_exponents():
    assert Mean.of([1000.0, 1100.0]).text() == "1050 ± 635"
    assert Mean.of([1.0, 1.1]).text() == "1.05 ± 0.64"
