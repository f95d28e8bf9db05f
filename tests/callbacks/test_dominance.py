"""When tasks are said to take over: how weights have grown, σ now, at first and in the middle, the number of rows."""

import math

import pytest

from lightning_uncertainty.callbacks._dominance import dominance

WEIGHTS = {"depth": 49.8, "kind": 0.2}
FALLING = [0.9**step for step in range(12)]


def warned(sigmas, weights=WEIGHTS, prefix="", first=0.2):
    """The first row's weights are `first`, of all or by task."""
    began = first if isinstance(first, dict) else dict.fromkeys(weights, first)
    others = {f"{prefix}sigma/{task}": math.nan for task in weights if task != "constant"}
    rows = [{**others, "step": step, f"{prefix}sigma/depth": sigma} for step, sigma in enumerate(sigmas)]
    rows[0] |= {f"{prefix}weight/{task}": weight for task, weight in began.items()}
    return dominance(rows, weights, prefix)


@pytest.mark.parametrize("prefix", ["", "u/"])
def test_a_sigma_that_fell_and_still_falls_beside_all_the_weight_is_told(prefix):
    assert warned(FALLING, prefix=prefix).startswith(
        "task 'depth' takes over: its weight has grown 249 times since the first row, the others' at most 1 times, and "
        "its σ has fallen from 1 to 0.314 and is still falling"
    )


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_units_of_labels_do_not_matter(unit):
    """Centimetres in place of metres: weights, now and at first, are 1e4 times smaller."""
    weights, first = {**WEIGHTS, "depth": 49.8 * unit}, {"depth": 0.2 * unit, "kind": 0.2}
    assert warned(FALLING, weights, first=first) == warned(FALLING)
    grown = {**weights, "depth": 0.8 * unit}  # σ has halved, as it does when a task is learnt
    assert warned(FALLING, grown, first=first) is None


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
    [
        {"depth": 0.99, "kind": 0.01},
        {"depth": 0.04, "kind": 0.96},
        {"depth": 1.0},
        {"depth": 1.0, "constant": 1e-9},
        {"depth": 0.0, "kind": 0.0},
    ],
)
def test_a_task_that_does_not_take_the_weight_of_others_is_not(weights):
    assert warned(FALLING, weights) is None


STILL = [2.0] * 12
TOGETHER = {"residual": 6.0, "boundary": 3.8, "initial": 0.02}


def warned_together(weights=TOGETHER, **sigmas):
    rows = [{f"sigma/{task}": own[step] for task, own in sigmas.items()} for step in range(12)]
    rows[0] |= dict.fromkeys([f"weight/{task}" for task in weights], 0.01)
    return dominance(rows, weights)


def test_tasks_that_fall_together_while_another_stands_still_are_told():
    told = warned_together(residual=FALLING, boundary=FALLING, initial=STILL)
    assert told.startswith(
        "tasks 'residual', 'boundary' take over: their weights have grown 600 and 380 times since the first row, the "
        "others' at most 2 times, and their σ fall together (residual from 1 to 0.314, boundary from 1 to 0.314) while "
        "that of 'initial' stands still"
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


def test_many_tasks_are_counted_and_three_named():
    tasks = [f"t{place}" for place in range(12)]
    weights = {task: 6.0 + place for place, task in enumerate(tasks)} | dict.fromkeys(("u", "v", "w", "x"), 0.01)
    told = warned_together(weights, **dict.fromkeys(tasks, FALLING), **dict.fromkeys(("u", "v", "w", "x"), STILL))
    assert told.startswith("tasks 't0', 't1', 't2' and 9 more take over: their weights have grown 600 to 1.7e+03 times")
    assert "t2 from 1 to 0.314 and 9 more) while that of 'u', 'v', 'w' and 1 more stands still" in told


def test_labels_in_a_large_unit_are_a_reason_that_is_named():
    for told in (warned(FALLING), warned_together(residual=FALLING, boundary=FALLING, initial=STILL)):
        assert "large unit" in told
        assert "Rescale(mean, std) behind" in told
