"""A history: bounded, of one run, each step once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_uncertainty.callbacks._history import History


def steps(history):
    return [row["step"] for row in history.rows]


def filled(count, max_rows=10):
    history = History(max_rows)
    for step in range(count):
        history.append(step, {"loss": float(step)})
    return history


@given(st.integers(2, 9), st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=60))
def test_it_stays_bounded_each_step_is_there_once_and_a_last_row_always(max_rows, appended):
    history, step = History(max_rows), 0
    for ahead, last in appended:
        step += ahead
        history.append(step, {}, last)
        assert len(history.rows) <= max_rows
        assert steps(history) == sorted(set(steps(history)))
        assert not last or steps(history)[-1] == step
    assert not appended or steps(history)[0] == appended[0][0]


def test_a_step_that_is_made_again_takes_the_place_of_its_row_and_of_those_behind():
    history = filled(6)
    history.append(4, {"loss": 7.0})
    assert steps(history) == [0, 1, 2, 3, 4]
    assert history.rows[-1] == {"step": 4, "loss": 7.0}
    assert history.to_frame().index.is_unique


@pytest.mark.parametrize(
    ("loaded", "before", "ended", "goes_on"),
    [
        (False, 0, 6, False),
        (False, 6, 6, True),
        (False, 5, 6, False),
        (False, 6, None, False),
        (True, 6, None, True),
        (True, 0, None, False),
    ],
    ids=["a new fit", "the same fit", "another one", "never ended", "a checkpoint", "a checkpoint that is not resumed"],
)
def test_it_goes_on_from_a_checkpoint_or_from_where_a_fit_ended(loaded, before, ended, goes_on):
    history = filled(6)
    if ended is not None:
        history.end(ended)
    if loaded:
        history.load_state_dict(filled(6).state_dict())
    assert history.begin(before) is goes_on
    assert steps(history) == (list(range(6)) if goes_on else [])
    assert not history.begin(before)  # neither is so twice
    assert history.state_dict() == History(10).state_dict()
