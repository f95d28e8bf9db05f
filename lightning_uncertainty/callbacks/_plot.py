"""One kind of number over the steps, a curve for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lightning_uncertainty._show import axes_or_new, load_pyplot
from lightning_uncertainty.dashboards.charts import KINDS, LOG_KINDS, scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Kind", "plot_rows"]

_MOST_IN_COLUMN = 10  # of the legend
_LINES = ("-", "--", ":", "-.")

Kind = Literal["sigma", "sigma_gap", "weight", "loss_share", "loss"]


def plot_rows(
    rows: Sequence[Mapping[str, Any]], kind: str, prefix: str = "", ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Draw a kind of number, from the rows of a history, into axes or a new figure; return both.

    Raises:
        ValueError: there is no such kind, or no row holds it.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if kind not in KINDS:
        raise ValueError(f"kind should be one of {', '.join(KINDS)}: found {kind!r}")
    start = f"{prefix}{kind}/"
    keys = list(dict.fromkeys(key for row in rows for key in row if key.startswith(start)))
    if not keys:
        raise ValueError(
            f"there is no {kind} to plot: found {len(rows)} rows without it; fit with this callback and "
            "log_every_n_steps above 0, with a weighting that has it"
        )
    figure, ax = axes_or_new(ax)
    colours = len(load_pyplot().rcParams["axes.prop_cycle"])
    for key in keys:
        points = [(row["step"], row[key]) for row in rows if key in row]
        line = _LINES[len(ax.lines) // colours % len(_LINES)]  # another one when colours begin again
        ax.plot(*zip(*points, strict=True), label=key.removeprefix(start), linestyle=line)
    ax.set_xlabel("step")
    ax.set_ylabel(KINDS[kind])
    if kind in LOG_KINDS:
        ax.set_yscale(scale_of([row[key] for row in rows if key in row] for key in keys))
    ax.legend(ncols=-(-len(keys) // _MOST_IN_COLUMN))
    return figure, ax
