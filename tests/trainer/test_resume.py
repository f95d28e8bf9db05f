"""A fit that was killed with SIGKILL and resumed ends, to the last bit, as one that never was."""

import pytest

from tests._versions import exact_resume
from tests.trainer._killed import CASES, LOGGED_EVERY
from tests.trainer._resume import BATCHES, LATE, bits

PROGRAM = "tests.trainer._killed"
SMOKE = "UncertaintyWeighting, in the checkpoint 14 then before the step 21"
pytestmark = [
    pytest.mark.cells(PROGRAM, "{case}"),
    exact_resume,
]
every_case = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.smoke] * (case == SMOKE)) for case in CASES]
)


def first_row(resumed, case):
    """The step of the first row after the resume, or None where it covers as many batches as ever."""
    at = resumed["resumed_at"]
    return None if at % LOGGED_EVERY == 0 else (at // LOGGED_EVERY + 1) * LOGGED_EVERY - 1


def is_ours(row):
    return any(key.startswith("weight/") for key in row)


@every_case
@pytest.mark.parametrize("part", ["module", "optimizer", "scheduler", "steps", "batches"])
def test_the_end_is_the_same(case, part, found):
    resumed, whole = found(case)
    assert bits(resumed[part]) == bits(whole[part])


@every_case
def test_what_is_logged_afterwards_is_the_same(case, found):
    """The first row of the monitor aside; every other row, of the module and of other callbacks too."""
    resumed, whole = found(case)
    first = first_row(resumed, case)
    expected = [(step, row) for step, row in whole["logged"] if step >= resumed["resumed_at"]]
    assert len(expected) > 3
    logged, expected = (
        [(s, r) for s, r in rows if s != first or not is_ours(r)] for rows in (resumed["logged"], expected)
    )
    assert bits(logged) == bits(expected)


@every_case
def test_the_history_is_the_same_but_for_the_first_row_afterwards(case, found):
    """That row covers the batches since the checkpoint alone: what came before went with the process."""
    resumed, whole = found(case)
    first = first_row(resumed, case)
    assert [row["step"] for row in resumed["history"]] == [row["step"] for row in whole["history"]]
    for row, expected in zip(resumed["history"], whole["history"], strict=True):
        if row["step"] != first:
            assert bits(row) == bits(expected)
            continue
        accumulate = CASES[case].accumulate
        since = resumed["seen"][: (first + 1 - resumed["resumed_at"]) * accumulate]
        means = {task: [losses[task] for losses in since if task in losses] for task in ("depth", "kind", "late")}
        assert {key.partition("/")[2] for key in row if "/" in key} == {task for task, seen in means.items() if seen}
        for key, value in row.items():
            kind, _, task = key.partition("/")
            if kind == "loss":
                assert value == pytest.approx(sum(means[task]) / len(means[task]))
            elif kind == "loss_share":
                weighted = {
                    task: abs(row[f"weight/{task}"] * row[f"loss/{task}"]) for task, seen in means.items() if seen
                }
                assert value == pytest.approx(weighted[task] / sum(weighted.values()))
            elif kind != "sigma_gap" and set(row) == set(expected):
                assert value == expected[key]


@every_case
def test_validations_are_the_same_but_for_one_that_lightning_leaves_out(case, found):
    """It resumes a checkpoint of an epoch's last batch behind the validation that was due then."""
    resumed, whole = found(case)
    at = resumed["resumed_at"]
    last = at * CASES[case].accumulate % BATCHES == 0 and not CASES[case].by_epoch
    left_out = at - 1 if last else None
    assert bits(resumed["evaluations"]) == bits([row for row in whole["evaluations"] if row["step"] != left_out])


@pytest.mark.cells(PROGRAM, *CASES)
def test_every_place_was_reached(found):
    """Runs were killed before a checkpoint was there, on and off logging steps, before and after a task's start."""
    at = [found(case)[0]["resumed_at"] for case in CASES]
    assert 0 in at
    assert {first_row(found(case)[0], case) is None for case in CASES} == {True, False}
    assert min(at) < LATE <= max(at)
