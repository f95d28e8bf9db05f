"""When a task is said to take over: its share, its σ now, at first and in the middle, and how many rows there are."""

import math

import pytest

from lightning_uncertainty.callbacks._dominance import dominance

SHARES = {"depth": 0.96, "kind": 0.04}
FALLING = [0.9**step for step in range(12)]


def warned(sigmas, shares=SHARES, prefix=""):
    rows = [{"step": step, f"{prefix}sigma/depth": sigma} for step, sigma in enumerate(sigmas)]
    return dominance(rows, shares, prefix)


@pytest.mark.parametrize("prefix", ["", "u/"])
def test_a_sigma_that_fell_and_still_falls_beside_all_the_weight_is_told(prefix):
    assert warned(FALLING, prefix=prefix).startswith(
        "task 'depth' takes 96% of the weight, and its σ has fallen from 1 to 0.314 and is still falling"
    )


@pytest.mark.parametrize(
    "sigmas",
    [
        [1.0, 0.6] + [0.3] * 10,  # it rests
        [0.95**step for step in range(12)],  # not to half
        [math.nan, *FALLING],
        FALLING[:9],
        [3.0] * 12,
    ],
    ids=["rests", "falls by little", "starts late", "few rows", "constant"],
)
def test_other_ways_of_a_sigma_are_not(sigmas):
    assert warned(sigmas) is None


@pytest.mark.parametrize("shares", [{"depth": 0.95, "kind": 0.05}, {"depth": 0.04, "kind": 0.96}, {"depth": 1.0}])
def test_a_task_that_does_not_take_the_weight_of_others_is_not(shares):
    assert warned(FALLING, shares) is None
