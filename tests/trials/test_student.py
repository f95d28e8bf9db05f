import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_uncertainty.trials._student import told_apart, two_sided_p, two_sided_t


@given(st.floats(0, 1e3), st.integers(1, 200))
def test_p_is_that_of_scipy(t, freedom):
    assert two_sided_p(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), abs=1e-9)
    assert two_sided_p(-t, freedom) == two_sided_p(t, freedom)


@given(st.sampled_from([0.4, 0.05, 0.01]), st.integers(1, 200))
def test_t_is_that_of_scipy(p, freedom):
    assert 2 * stats.t.sf(two_sided_t(p, freedom), freedom) == pytest.approx(p, rel=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_tests_together_are_stricter_than_each_and_laxer_than_bonferroni(ps):
    for p, apart in zip(ps, told_apart(ps), strict=True):
        assert not apart or p <= 0.05
        assert apart or p > 0.05 / len(ps)


def test_holm_by_hand():
    assert told_apart([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]  # 0.0125, 0.0167, 0.025, 0.05
    assert told_apart([]) == []
