"""Axes to draw on, and those on which what is predicted stands against what is observed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["axes_or_new", "load_pyplot", "require_matplotlib", "unit_axes"]


def require_matplotlib(what: str) -> None:
    """Look whether matplotlib, which brings Pillow, is installed.

    Raises:
        ModuleNotFoundError: it is not.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{what} needs matplotlib: pip install 'lightning-uncertainty[plot]'") from error


def load_pyplot() -> Any:
    """Return `matplotlib.pyplot`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    require_matplotlib("plot")
    from matplotlib import pyplot

    return pyplot


def axes_or_new(ax: Axes | None) -> tuple[Figure, Axes]:
    """Return a figure and its axes: these, or new ones where None.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    pyplot = load_pyplot()
    if ax is None:
        _, ax = pyplot.subplots(layout="constrained")
    figure = ax.get_figure()
    assert figure is not None
    return figure, ax  # type: ignore[return-value]


def unit_axes(ax: Axes | None, predicted: str, observed: str) -> tuple[Figure, Axes]:
    """Return a figure and its axes, these or new ones where None, with labels and the diagonal of perfect calibration.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    figure, ax = axes_or_new(ax)
    ax.plot([0, 1], [0, 1], "--", color="0.6", label="calibrated")
    ax.set_xlabel(predicted)
    ax.set_ylabel(observed)
    return figure, ax
