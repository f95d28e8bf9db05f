"""The same rows, however they are batched."""

from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_uncertainty.callbacks._fixed_rows import FixedRows, copied, cut, rows_of

Pair = namedtuple("Pair", "x y")


def batches(sizes, wrap=lambda numbers: {"number": numbers}):
    first = 0
    for index, size in enumerate(sizes):
        yield wrap(torch.arange(first, first + size)), size, index
        first += size


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=8),
    st.sets(st.integers(0, 20), min_size=1, max_size=5),
    st.integers(0, 20),
    st.booleans(),
)
def test_rows_are_those_that_were_asked_for(sizes, images, points, counted):
    rows = FixedRows(sorted(images), points)
    more = {} if counted else {"k": torch.ones(9)}
    taken = 0
    for batch, size, index in batches(sizes, lambda numbers: {"number": numbers, **more}):
        if rows.wants_more():
            rows.add(batch, size, index)
            taken += size
    total = sum(sizes)
    shown = {number: kept.batch["number"][place].item() for kept in rows.kept for number, place in kept.shown.items()}
    assert shown == {number: number for number in images if number < total}
    if counted:
        found = sorted(number for kept in rows.kept for number in kept.batch["number"].tolist())
        assert found == sorted({*range(min(points, total)), *(number for number in images if number < total)})
    assert taken >= min(total, max(max(images) + 1, points))
    rows.drop_tables()
    shown = {number: kept.batch["number"][place].item() for kept in rows.kept for number, place in kept.shown.items()}
    assert shown == {number: number for number in images if number < total}
    assert all(kept.shown for kept in rows.kept)


def test_rows_of_tables_stop_where_they_are_too_large(monkeypatch):
    monkeypatch.setattr("lightning_uncertainty.callbacks._fixed_rows._BYTES", 100)
    rows = FixedRows([0], 1000)
    for batch, size, index in batches([10] * 9, lambda numbers: numbers.double()):
        if rows.wants_more():
            rows.add(batch, size, index)
    assert sum(len(kept.batch) for kept in rows.kept) == 20


def test_batches_whose_rows_nobody_knows_are_kept_whole_and_few():
    rows = FixedRows([0], 64)
    for index in range(20):
        if rows.wants_more():
            rows.add(object(), None, index)
    assert len(rows.kept) == 8
    assert not any(kept.shown for kept in rows.kept)


@pytest.mark.parametrize(
    "batch",
    [
        {"x": torch.arange(4), "more": [torch.arange(4.0), "text", None]},
        (torch.arange(4), torch.ones(4, 2)),
        Pair(torch.arange(4), torch.arange(4)),
        torch.arange(4),
    ],
)
def test_plain_batches_are_cut_and_copied_in_their_own_form(batch):
    assert rows_of(batch) == 4
    part = cut(batch, [2, 0], 4)
    assert type(part) is type(batch)
    first = part if isinstance(part, torch.Tensor) else part["x"] if isinstance(part, dict) else part[0]
    assert first.tolist() == [2, 0]
    twin = copied(batch)
    given_first = batch if isinstance(batch, torch.Tensor) else batch["x"] if isinstance(batch, dict) else batch[0]
    twin_first = twin if isinstance(twin, torch.Tensor) else twin["x"] if isinstance(twin, dict) else twin[0]
    twin_first.zero_()
    assert given_first.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "batch", [{"x": torch.ones(4), "weights": torch.ones(3)}, {"x": torch.ones(4), "n": torch.tensor(4)}, object(), {}]
)
def test_others_are_not(batch):
    assert rows_of(batch) is None
    assert cut(batch, [0], 4) is None
