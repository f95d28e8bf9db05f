"""A run's curves by key, taken from rows or columns in a few passes of numpy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["Columns", "Curve", "columns_of", "curves_of"]


class Curve:
    """The values of a key, by increasing step.

    Attributes:
        x: steps, an array of integers.
        y: values, an array of floats.
    """

    def __init__(self, steps: Any, values: Any) -> None:
        self.x: Any = np.asarray(steps, np.int64)
        self.y: Any = np.asarray(values, np.float64)

    @property
    def last(self) -> float:
        """The last value."""
        return float(self.y[-1])

    @property
    def ended(self) -> float:
        """The median of the finite values of the last tenth, at least of five: a single one may be odd."""
        last = self.y[-max(5, -(-len(self.y) // 10)) :]
        finite = last[np.isfinite(last)]
        return float(np.median(finite)) if len(finite) else self.last

    @cached_property
    def steps(self) -> list[int]:
        """The steps."""
        return list(self.x.tolist())

    @cached_property
    def values(self) -> list[float]:
        """The values."""
        return list(self.y.tolist())


class Columns(Sequence[Mapping[str, float]]):
    """Rows of which there are columns: curves by key. A row is put together where somebody asks for one."""

    def __init__(self, curves: Mapping[str, Curve]) -> None:
        self.curves = curves

    @cached_property
    def _rows(self) -> list[dict[str, float]]:
        rows: dict[int, dict[str, float]] = {}
        for key, curve in self.curves.items():
            for step, value in zip(curve.steps, curve.values, strict=True):
                rows.setdefault(step, {"step": step})[key] = value
        return [rows[step] for step in sorted(rows)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]


def curves_of(rows: Iterable[Mapping[str, float]]) -> dict[str, Curve]:
    """Return every key's curve; of several values at one step the last.

    Example:
        >>> found = curves_of([{"step": 9, "a": 1.0}, {"step": 4, "a": 2.0, "b": 0.5}, {"step": 9, "a": 3.0}])
        >>> {key: (curve.steps, curve.values) for key, curve in found.items()}
        {'a': ([4, 9], [2.0, 3.0]), 'b': ([4], [0.5])}
    """
    if isinstance(rows, Columns):
        return dict(rows.curves)
    alike: dict[tuple[str, ...], list[int]] = {}  # rows of the same keys are one matrix
    rows = list(rows)
    for index, row in enumerate(rows):
        alike.setdefault(tuple(row), []).append(index)
    parts: dict[str, list[tuple[Any, Any, Any]]] = {}
    for keys, indices in alike.items():
        matrix = np.array([list(rows[index].values()) for index in indices], np.float64)
        steps = matrix[:, keys.index("step")].astype(np.int64)
        for column, key in enumerate(keys):
            if key != "step":
                parts.setdefault(key, []).append((steps, np.array(indices), matrix[:, column]))
    joined = ((key, (np.concatenate(column) for column in zip(*found, strict=True))) for key, found in parts.items())
    return {key: _in_order(*columns) for key, columns in joined}


def columns_of(table: Any, names: Sequence[str], given: Any) -> Iterator[tuple[str, Curve]]:
    """Yield the curves of a table with a column "step".

    Args:
        table: numbers `[rows, columns]`.
        names: of the columns.
        given: which of the numbers are there `[rows, columns]`; None for all of them.
    """
    where = list(names).index("step")
    rows, steps = np.arange(len(table)), None if given is not None else table[:, where].astype(np.int64)
    for column, name in enumerate(names):
        if name == "step":
            continue
        if steps is not None:
            yield name, _in_order(steps, rows, np.ascontiguousarray(table[:, column]))
        elif len(rows := np.flatnonzero(given[:, where] & given[:, column])):
            yield name, _in_order(table[rows, where].astype(np.int64), rows, table[rows, column])


def _in_order(steps: Any, order: Any, values: Any) -> Curve:
    if not (steps[1:] > steps[:-1]).all():
        by_step = np.lexsort((order, steps))
        last = by_step[np.append(steps[by_step][1:] != steps[by_step][:-1], True)]
        steps, values = steps[last], values[last]
    return Curve(steps, values)
