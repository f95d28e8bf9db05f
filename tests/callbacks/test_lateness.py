"""When a σ is said to be late: how far off, on which side, for how long, and where it is none of its fault."""

import pytest

from lightning_uncertainty.callbacks._lateness import lateness

MOVING = [3.0 - 0.1 * step for step in range(11)]


def warned(gaps, sigmas=MOVING, every=50, prefix="", tasks=("depth", "kind")):
    rows = [
        {"step": every * index, f"{prefix}sigma_gap/depth": gap, f"{prefix}sigma/depth": sigma}
        for index, (gap, sigma) in enumerate(zip(gaps, sigmas, strict=False))
    ]
    return lateness(rows, tasks, prefix)


@pytest.mark.parametrize("prefix", ["", "u/"])
@pytest.mark.parametrize(("gap", "size", "weight"), [(0.34, "large", "small"), (-0.34, "small", "large")])
def test_a_sigma_that_was_a_third_off_for_500_steps_is_told_with_the_remedy(prefix, gap, size, weight):
    told = warned([gap] * 11, prefix=prefix)
    assert told.startswith(f"σ of task 'depth' has been more than a third too {size} for 500 steps: it is 2, where the")
    assert f"say {2 / (1 + gap):.3g}, so the task's weight is too {weight}; give" in told


@pytest.mark.parametrize(
    ("gaps", "sigmas", "every"),
    [
        ([0.33] * 11, MOVING, 50),
        ([0.4] * 10, MOVING, 50),
        ([0.4] * 4, MOVING, 500),
        ([0.4] * 10 + [0.0], MOVING, 50),
        ([0.4] * 5 + [-0.4] * 6, MOVING, 50),
        ([0.4] * 11, [3.0] * 11, 50),
        ([2.0**step for step in range(11)], MOVING, 50),
        ([0.0] + [1e5] * 12, [3.0, *MOVING, 1.9], 50),
        ([0.4] * 11, MOVING, 0),
    ],
    ids=["near", "not long", "few rows", "on time", "to and fro", "held", "goes to zero", "is zero", "another fit"],
)
def test_other_ways_of_a_sigma_are_not(gaps, sigmas, every):
    assert warned(gaps, sigmas, every) is None


def test_rows_without_the_task_are_passed_over_and_so_are_tasks_without_labels_now():
    rows = [{"step": 50 * step, "sigma_gap/depth": 0.5, "sigma/depth": 2.0 - 0.1 * step} for step in range(11)]
    assert lateness([*rows[:5], {"step": 230}, *rows[5:]], ["depth"]) is not None
    assert lateness(rows, ["kind"]) is None
    assert lateness([{**row, "sigma_gap/depth": -1.0} for row in rows], ["depth"]).count("say inf") == 1
