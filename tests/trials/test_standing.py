import math

import pytest

from lightning_uncertainty.trials import Comparison
from tests.trials.test_comparing import DEPTH, KIND, made, trial


def test_ten_percent_in_each_seed_is_ten_percent_without_doubt():
    base = [(1.0, 0.2), (2.0, 0.4), (4.0, 0.8)]
    found = made(baseline="base", base=base, better=[(0.9 * d, 1.1 * k) for d, k in base])
    better = found.best
    assert better.gain.values == pytest.approx((10, 10, 10), abs=1e-3)
    assert better.gain.interval < 1e-3
    assert (
        found.answer()
        == "better gains most: +10.00 ± 0 % over base (3 seeds). The seeds tell it from base (paired t-test, 5 %)."
    )


def test_the_winner_is_tested_against_the_baseline_too():
    found = made(baseline="base", base=[(2.0, 0.5)] * 3, best=[(1.6, 0.5), (2.2, 0.5), (1.9, 0.5)])
    assert found.answer().startswith(
        "best gains most: +2.50 ± 19 % over base (3 seeds). The seeds do not tell it from base ("
    )


def test_the_two_best_have_a_number_of_seeds():
    apart = {"far": [(1.80, 0.5), (1.90, 0.5), (2.00, 0.5)], "near": [(1.6, 0.5), (1.9, 0.5), (1.8, 0.5)]}
    found = made(baseline="far", best=[(1.60, 0.5), (1.70, 0.5), (1.80, 0.5)], **apart)  # ahead of far in every seed
    text = found.answer()
    assert "The seeds tell it from far, not from near (paired t-tests, 5 %, Holm)." in text
    assert "To tell best from near would take about " in text


def test_a_baseline_that_none_beats_is_told_as_such():
    found = made(baseline="base", base=[(2.0, 0.5)] * 2, worse=[(2.2, 0.5), (2.3, 0.5)])
    assert found.answer().startswith("No weighting gains over base, the baseline (2 seeds).")


def test_one_seed_says_nothing_of_chance():
    one = made(low=[(2.0, 0.5)], baseline="low", high=[(1.6, 0.6)])
    assert (
        one.answer() == "high gains most: +20.00 % over low (1 seed). One seed does not say how much of it is chance."
    )
    worse = made(baseline=SINGLE, low=[(2.4, 0.5), (2.4, 0.5)])
    assert worse.answer().startswith("low loses least: ")


SINGLE = "single task"


def test_a_gain_is_of_the_seeds_that_both_have():
    trials = [trial("base", seed, [2.0], [0.5]) for seed in (0, 1, 2)]
    trials += [trial("other", seed, [1.0], [0.5]) for seed in (2, 3)]
    found = Comparison(tuple(trials), (DEPTH, KIND), (), "base")
    assert found.best.gains == {2: pytest.approx(25.0)}
    assert {result.name: result.ranks.values for result in found.results} == {"other": (1.25,), "base": (1.75,)}
    assert "(n=1)" in found.table()


def test_ranks_are_over_seeds_that_all_have():
    trials = [trial("a", 0, [1.0], [0.5]), trial("b", 0, [2.0], [0.4]), trial("b", 1, [0.1], [0.9])]
    found = Comparison(tuple(trials), (DEPTH, KIND))
    assert {result.name: result.ranks.values for result in found.results} == {"a": (1.0,), "b": (2.0,)}
    apart = Comparison((trial("a", 0, [1.0], [0.5]), trial("b", 1, [2.0], [0.4])), (DEPTH, KIND))
    assert [result.rank for result in apart.results] == [None, None]
    assert "No seed has all weightings" in apart.answer()


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_seed_without_a_baseline_is_left_out_and_told(bad):
    found = made(baseline="base", base=[(2.0, 0.5), (2.0, bad)], other=[(1.0, 0.5), (1.0, 0.5)])
    with pytest.warns(UserWarning, match=r"finite and not zero, .* found otherwise with seeds \[1\]"):
        assert found.best.gains == {0: pytest.approx(25.0)}


def test_both_baselines_are_shown():
    single = [trial(SINGLE, s, [2.0], [9.0], "depth") for s in (0, 1)] + [
        trial(SINGLE, s, [9.0], [0.5], "kind") for s in (0, 1)
    ]
    own = [trial(f"{SINGLE}, w", s, [1.6], [9.0], "depth") for s in (0, 1)]
    own += [trial(f"{SINGLE}, w", s, [9.0], [0.5], "kind") for s in (0, 1)]
    found = Comparison(
        (*single, *own, trial("w", 0, [1.5], [0.5]), trial("w", 1, [1.5], [0.5])), (DEPTH, KIND), (), SINGLE
    )
    assert found.best.gain.mean == pytest.approx(12.5)
    assert found.best.gain_alone.mean == pytest.approx(3.125)
    assert [result.name for result in found.results] == [f"{SINGLE}, w", SINGLE, "w"]
    assert "gain alone %" in found.table()
