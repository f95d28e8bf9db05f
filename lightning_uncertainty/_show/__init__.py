"""How a table and axes are made."""

from lightning_uncertainty._show.plot import axes_or_new, load_pyplot, unit_axes
from lightning_uncertainty._show.table import render

__all__ = ["axes_or_new", "load_pyplot", "render", "unit_axes"]
