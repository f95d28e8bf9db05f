"""The rows of validation that are looked at again and again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["FixedRows", "Rows", "copied", "cut", "rows_of"]

_BYTES = 64 * 2**20  # of rows that only tables need
_OPAQUE = 8  # batches whose rows cannot be counted count as if they were a share of the points


class Rows(NamedTuple):
    """Rows that are kept of a batch.

    Attributes:
        batch: a copy, on its device; of the kept rows alone where it can be cut.
        shown: those in it that have pictures, by their number in validation.
        number: of the batch.
    """

    batch: Any
    shown: dict[int, int]
    number: int = 0


class FixedRows:
    """Rows by their number in validation: those that have pictures, and the first of all for tables.

    Args:
        images: which have pictures.
        points: how many a table may have.

    Attributes:
        kept: in the order of validation.
    """

    def __init__(self, images: Sequence[int], points: int) -> None:
        self.images = sorted(set(images))
        self.kept: list[Rows] = []
        self._points, self._seen, self._bytes = points, 0, 0

    def wants_more(self) -> bool:
        """Whether a next batch may have rows to keep."""
        return self._seen <= max(self.images, default=-1) or self._counts_more()

    def add(self, batch: Any, rows: int | None, index: int) -> None:
        """Keep what is needed of the next batch.

        Args:
            batch: as a step of validation is given it.
            rows: how many it has; None where nobody knows.
            index: its number.
        """
        first, count = self._seen, -(-self._points // _OPAQUE) if rows is None else rows
        self._seen += count
        wanted = [image - first for image in self.images if first <= image < first + count]
        if rows is None:
            wanted = []
        for_tables = range(min(count, self._points - first)) if self._bytes < _BYTES else ()
        chosen = sorted({*wanted, *for_tables})
        if not chosen:
            return
        part = cut(batch, chosen, rows)
        places = {row: row for row in chosen} if part is None else {row: place for place, row in enumerate(chosen)}
        part = copied(batch) if part is None else part
        self._bytes += sum(leaf.numel() * leaf.element_size() for leaf in _tensors(part))
        self.kept.append(Rows(part, {first + row: places[row] for row in wanted}, index))

    def drop_tables(self) -> None:
        """Keep only what has pictures."""
        self._points = 0
        kept = []
        for rows in self.kept:
            if rows.shown:
                part = cut(rows.batch, list(rows.shown.values()), rows_of(rows.batch))
                shown = {number: place for place, number in enumerate(rows.shown)}
                kept.append(rows if part is None else Rows(part, shown, rows.number))
        self.kept = kept

    def _counts_more(self) -> bool:
        return self._seen < self._points and self._bytes < _BYTES


def rows_of(batch: Any) -> int | None:
    """Return the B of a batch of tensors `[B, ...]` in plain containers; None of any other.

    Example:
        >>> rows_of({"image": torch.ones(4, 3, 8, 8), "depth": torch.ones(4)}), rows_of([torch.ones(4), torch.ones(5)])
        (4, None)
    """
    sizes = {leaf.shape[0] if leaf.dim() else None for leaf in _tensors(batch)}
    return sizes.pop() if len(sizes) == 1 and _is_plain(batch) else None


def cut(batch: Any, chosen: Sequence[int], rows: int | None) -> Any | None:
    """Return a copy of some rows of a batch; None where nothing tells what its rows are."""
    if rows is None or rows_of(batch) != rows:
        return None
    return _mapped(batch, lambda leaf: leaf[torch.tensor(list(chosen), device=leaf.device)])


def copied(batch: Any) -> Any:
    """Return a copy of a batch on its device, which a step may change in place."""
    return _mapped(batch, lambda leaf: leaf.clone()) if _is_plain(batch) else deepcopy(batch)


def _is_plain(batch: Any) -> bool:
    """Whether containers are those that can be made anew of their parts."""
    if isinstance(batch, Tensor):
        return batch.layout == torch.strided and not batch.is_nested
    if type(batch) is dict:
        return all(_is_plain(part) for part in batch.values())
    if type(batch) in (list, tuple) or _is_named(batch):
        return all(_is_plain(part) for part in batch)
    return batch is None or isinstance(batch, str | bytes | int | float)


def _is_named(batch: Any) -> bool:
    return isinstance(batch, tuple) and hasattr(batch, "_fields")


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict | list | tuple):
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from _tensors(part)


def _mapped(batch: Any, change: Any) -> Any:
    if isinstance(batch, Tensor):
        return change(batch.detach())
    if isinstance(batch, dict):
        return {key: _mapped(part, change) for key, part in batch.items()}
    if _is_named(batch):
        return type(batch)(*(_mapped(part, change) for part in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(_mapped(part, change) for part in batch)
    return batch
