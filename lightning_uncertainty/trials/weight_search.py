"""Fixed weights that add up to 1, and what a search of them found."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_uncertainty._show import axes_or_new, render
from lightning_uncertainty.trials._measures import Measure
from lightning_uncertainty.weightings import FixedWeighting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Point", "WeightSearch", "simplex_grid"]


def simplex_grid(tasks: int, parts: int, *, zeros: bool = False) -> list[tuple[float, ...]]:
    r"""Return all weights of T tasks that are multiples of 1/n and add up to 1.

    There are :math:`\binom{n-1}{T-1}` of them, and with zeros :math:`\binom{n+T-1}{T-1}`.

    Args:
        tasks: T.
        parts: n.
        zeros: whether weights may be zero.

    Raises:
        ValueError: there is no such point.

    Example:
        >>> simplex_grid(2, 4)
        [(0.25, 0.75), (0.5, 0.5), (0.75, 0.25)]
        >>> len(simplex_grid(3, 10)), len(simplex_grid(3, 10, zeros=True))
        (36, 66)
    """
    least = 1 if zeros else tasks
    if tasks < 1 or parts < least:
        raise ValueError(f"a grid should have parts, at least {least} for {tasks} tasks: found {parts}")
    slots = parts + tasks if zeros else parts  # bars among them; with zeros, one more in every gap
    gaps = [
        tuple(b - a - zeros for a, b in zip((0, *bars), (*bars, slots), strict=True))
        for bars in combinations(range(1, slots), tasks - 1)
    ]
    return [tuple(gap / parts for gap in gaps_of) for gaps_of in gaps]


@dataclass(frozen=True)
class Point:
    """One fit of a search.

    Attributes:
        weights: by task; they add up to 1.
        value: the objective; None where the fit was ended early.
        row: what the last validation logged, by log key; empty where the fit was ended early.
        failed: why there is neither; empty where the fit did not fail.
    """

    weights: dict[str, float]
    value: float | None
    row: dict[str, float]
    failed: str = ""


@dataclass(frozen=True)
class WeightSearch:
    """What a search found; `print` shows the table.

    Attributes:
        points: all fits, the best first.
        measures: what the tasks are judged by.
        objective: log key of what was sought.
        maximize: whether more of it is better.
    """

    points: tuple[Point, ...]
    measures: tuple[Measure, ...]
    objective: str
    maximize: bool

    @property
    def weighting(self) -> FixedWeighting:
        """The best weights as a new weighting, to train or compare with."""
        return FixedWeighting(self.points[0].weights)

    def pareto(self) -> tuple[Point, ...]:
        """Return the points that no other beats: as good in every measure, and better in one."""
        scores = [(point, self._scores(point)) for point in self.points if point.row]
        sound = [(point, score) for point, score in scores if not any(map(math.isnan, score))]
        return tuple(point for point, score in sound if not any(_dominates(other, score) for _, other in sound))

    def rows(self) -> tuple[list[str], list[list[Any]]]:
        """Return the columns of the CSV and its rows: numbers, None where there is none."""
        tasks = list(self.points[0].weights)
        front = {id(point) for point in self.pareto()}
        columns = [f"weight/{task}" for task in tasks]
        columns += [self.objective, *(f"{measure.task}/{measure.metric}" for measure in self.measures), "pareto"]
        rows = [
            [*point.weights.values(), point.value, *(point.row.get(m.key) for m in self.measures), id(point) in front]
            for point in self.points
        ]
        return columns, rows

    def to_csv(self, path: str | Path) -> None:
        """Write the table as numbers, one row for each fit."""
        columns, rows = self.rows()
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows])

    def table(self) -> str:
        """Return the table as text: rich's where it is installed, plain else; the Pareto front is starred."""
        columns, rows = self.rows()
        lines = [
            ["" if cell is None else f"{cell:.4g}" for cell in cells] + ["*" if front else ""] for *cells, front in rows
        ]
        if any(point.failed for point in self.points):
            columns = [*columns, "failed"]
            lines = [[*line, point.failed[:60]] for line, point in zip(lines, self.points, strict=True)]
        return render(f"Fixed weights by {self.objective}, {len(rows)} fits", columns, lines)

    def __str__(self) -> str:
        return f"{self.table()}\n\nbest: {self.weighting}"

    def plot(self, x: str | None = None, y: str | None = None, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw two measures against each other, the front of both as a line; into axes or a new figure; return both.

        Args:
            x: a task; the first where None.
            y: another; the second where None.
            ax: where to draw.

        Raises:
            ValueError: there is no such task, or only one.
            ModuleNotFoundError: matplotlib is not installed.
        """
        first, second = self._pair(x, y)
        figure, ax = axes_or_new(ax)
        shown = [point for point in self.points if point.row]
        places = {id(point): (point.row[first.key], point.row[second.key]) for point in shown}
        pair = WeightSearch(tuple(shown), (first, second), self.objective, self.maximize)
        front = sorted(places[id(point)] for point in pair.pareto())
        ax.scatter(*zip(*places.values(), strict=True), color="0.7", label="fixed weights")
        ax.plot(*zip(*front, strict=True), "o-", color="C0", label="Pareto front")
        ax.plot(*places[id(shown[0])], "*", color="C1", markersize=14, label="best")
        for measure, label in ((first, ax.set_xlabel), (second, ax.set_ylabel)):
            label(f"{measure.task} {measure.metric}, {'higher' if measure.higher_is_better else 'lower'} is better")
        ax.legend()
        return figure, ax

    def _pair(self, x: str | None, y: str | None) -> tuple[Measure, Measure]:
        by_task = {measure.task: measure for measure in reversed(self.measures)}
        tasks = list(dict.fromkeys(measure.task for measure in self.measures))
        first = tasks[0] if x is None else x
        second = next((task for task in tasks if task != first), first) if y is None else y
        if first not in tasks or second not in tasks or first == second:
            raise ValueError(f"a plot should be of two tasks out of {', '.join(tasks)}: found {first} and {second}")
        return by_task[first], by_task[second]

    def _scores(self, point: Point) -> tuple[float, ...]:
        """Return what to maximise."""
        return tuple((1 if measure.higher_is_better else -1) * point.row[measure.key] for measure in self.measures)


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))
