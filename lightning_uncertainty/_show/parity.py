"""Predictions against what was observed: numbers with σ, classes by how often each was taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Classified", "Paired", "draw_parity"]

_WRITTEN = 10  # classes at most whose names and counts are legible
_BARS = 100  # points at most whose σ is drawn one by one


class Paired(NamedTuple):
    """Numbers of a task.

    Attributes:
        name: of the task.
        truth: `[N]`.
        mean: what was predicted, `[N]`.
        sigma: the standard deviation of each, `[N]`; None where there is none.
    """

    name: str
    truth: np.ndarray
    mean: np.ndarray
    sigma: np.ndarray | None


class Classified(NamedTuple):
    """Classes of a task.

    Attributes:
        name: of the task.
        counts: how often a class (row) was taken for a class (column), `[C, C]`.
        names: of the classes.
    """

    name: str
    counts: np.ndarray
    names: Sequence[str]


def draw_parity(title: str, tasks: Sequence[Paired | Classified]) -> np.ndarray:
    """Return a picture `[H, W, 3]`, uint8, with axes for each task, four to a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.2 * rows), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=9)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for number, (ax, task) in enumerate(zip(axes, tasks, strict=False)):
        if isinstance(task, Paired):
            _draw_numbers(ax, task)
            ax.set_xlabel("truth" if number + columns >= len(tasks) else "")
            ax.set_ylabel("prediction" if number % columns == 0 else "")
        else:
            _draw_classes(ax, task)
    for ax in axes[len(tasks) :]:
        ax.set_axis_off()
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def _draw_numbers(ax: Axes, task: Paired) -> None:
    """Draw points about the line on which prediction is truth, with bars of σ, or a band where it is one number."""
    low, high = _limits(task)
    line: Any = [low, high]
    ax.plot(line, line, "--", color="0.5", linewidth=1, zorder=1)
    note = f"RMSE {np.sqrt(np.mean((task.mean - task.truth) ** 2)):.3g}"
    sigma = task.sigma
    if sigma is not None and np.ptp(sigma) <= 1e-3 * np.abs(sigma).max():
        one = float(sigma.mean())
        ax.fill_between(line, [low - one, high - one], [low + one, high + one], color="C0", alpha=0.15, linewidth=0)
        note += f"   σ {one:.3g}"
    elif sigma is not None:
        some = slice(None, None, -(-len(sigma) // _BARS))
        ax.errorbar(task.truth[some], task.mean[some], sigma[some], fmt="none", ecolor="C0", alpha=0.3, linewidth=0.8)
        note += f"   σ {np.quantile(sigma, 0.05):.3g} to {np.quantile(sigma, 0.95):.3g}"
    ax.scatter(task.truth, task.mean, s=8, alpha=min(1.0, 0.25 + 50 / len(task.truth)), linewidths=0, zorder=2)
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    ax.set_aspect("equal")
    ax.set_title(f"{task.name}\n{note}", fontsize=9)


def _limits(task: Paired) -> tuple[float, float]:
    """Return the ends of both axes: one wild prediction in a hundred may lie outside, no label does."""
    predicted = np.quantile(task.mean, [0.005, 0.995])
    low, high = float(min(task.truth.min(), predicted[0])), float(max(task.truth.max(), predicted[1]))
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _draw_classes(ax: Axes, task: Classified) -> None:
    """Draw how often each class was taken for which, as shares of its labels."""
    counts = task.counts.astype(float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    right = np.trace(counts) / max(counts.sum(), 1)
    if len(counts) <= _WRITTEN:
        places = range(len(counts))
        ax.set_xticks(places, [str(name) for name in task.names], rotation=45, ha="right", fontsize=7)
        ax.set_yticks(places, [str(name) for name in task.names], fontsize=7)
        for row in places:
            for column in places:
                if counts[row, column]:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    ax.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", color=colour, size=7)
    ax.set_xlabel("prediction")
    ax.set_ylabel("truth")
    ax.set_title(f"{task.name}\n{100 * right:.0f} % right", fontsize=9)
