"""Numbers of pairs of tasks as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_heat_map", "heat_map"]

_TITLES = {"cosine": "cosine of the tasks' gradients", "magnitude_similarity": "magnitude similarity of gradients"}
_COLOURS = {"cosine": ("RdBu", -1.0), "magnitude_similarity": ("viridis", 0.0)}  # and the lowest value
_WRITTEN = 12  # tasks at most whose numbers are legible


def heat_map(kind: str, values: Tensor, tasks: Sequence[str]) -> Figure:
    """Return numbers `[T, T]` of a kind as a figure of its own, which is not pyplot's: a notebook would show that."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    draw_heat_map(figure.subplots(), kind, values, tasks)
    return figure


def draw_heat_map(ax: Axes, kind: str, values: Tensor, tasks: Sequence[str]) -> None:
    """Draw numbers `[T, T]` of a kind into axes; pairs that are NaN stay grey."""
    colours, lowest = _COLOURS[kind]
    image = ax.imshow(values.numpy(), cmap=colours, vmin=lowest, vmax=1.0)
    places = range(len(tasks))
    ax.set_xticks(places, tasks, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(places, tasks)
    ax.set_title(_TITLES[kind])
    ax.set_facecolor("lightgrey")
    ax.figure.colorbar(image, ax=ax)
    if len(tasks) > _WRITTEN:
        return
    for row in places:
        for column in places:
            value = float(values[row, column])
            if value == value:  # not NaN
                light = abs(value) > 0.6 if kind == "cosine" else value < 0.6
                ax.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if light else "black")
