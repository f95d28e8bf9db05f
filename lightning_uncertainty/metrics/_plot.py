"""Axes on which what is predicted stands against what is observed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["unit_axes"]


def unit_axes(ax: Axes | None, predicted: str, observed: str) -> tuple[Figure, Axes]:
    """Return a figure and its axes, these or new ones where None, with labels and the diagonal of perfect calibration.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plot needs matplotlib: pip install 'lightning-uncertainty[plot]'") from error
    if ax is None:
        _, ax = pyplot.subplots(layout="constrained")
    ax.plot([0, 1], [0, 1], "--", color="0.6", label="calibrated")
    ax.set_xlabel(predicted)
    ax.set_ylabel(observed)
    figure = ax.get_figure()
    assert figure is not None
    return figure, ax  # type: ignore[return-value]
