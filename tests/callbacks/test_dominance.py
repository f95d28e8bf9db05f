"""When tasks are said to take over: their weights, their σ now, at first and in the middle, and the number of rows."""

import math

import pytest

from lightning_uncertainty.callbacks._dominance import dominance

WEIGHTS = {"depth": 4.8, "kind": 0.2}
FALLING = [0.9**step for step in range(12)]


def warned(sigmas, weights=WEIGHTS, prefix=""):
    rows = [{"step": step, f"{prefix}sigma/depth": sigma} for step, sigma in enumerate(sigmas)]
    return dominance(rows, weights, prefix)


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


@pytest.mark.parametrize(
    "weights",
    [{"depth": 0.95, "kind": 0.05}, {"depth": 0.04, "kind": 0.96}, {"depth": 1.0}, {"depth": 0.0, "kind": 0.0}],
)
def test_a_task_that_does_not_take_the_weight_of_others_is_not(weights):
    assert warned(FALLING, weights) is None


STILL = [2.0] * 12
TOGETHER = {"residual": 0.6, "boundary": 0.38, "initial": 0.02}


def warned_together(weights=TOGETHER, **sigmas):
    return dominance([{f"sigma/{task}": own[step] for task, own in sigmas.items()} for step in range(12)], weights)


def test_tasks_that_fall_together_while_another_stands_still_are_told():
    told = warned_together(residual=FALLING, boundary=FALLING, initial=STILL)
    assert told.startswith(
        "tasks 'residual', 'boundary' take 98% of the weight, and their σ fall together (residual from 1 to 0.314, "
        "boundary from 1 to 0.314) while that of 'initial' stands still"
    )
    assert "UncertaintyWeighting(start=0.0) and a slow log_variance_lr" in told


@pytest.mark.parametrize(
    "sigmas",
    [
        {"residual": FALLING, "boundary": FALLING, "initial": FALLING},
        {"residual": FALLING, "boundary": FALLING, "initial": [0.97**step for step in range(12)]},
        {"residual": FALLING, "boundary": STILL, "initial": STILL},
        {"residual": FALLING, "boundary": FALLING, "initial": [math.nan] * 12},
    ],
    ids=["all are learnt", "the other falls by less", "one of them rests", "the other has not started"],
)
def test_tasks_that_do_not_are_not(sigmas):
    assert warned_together(**sigmas) is None
