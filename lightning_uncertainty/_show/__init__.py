"""How tables, axes and pictures are made."""

from lightning_uncertainty._show.colours import (
    MISSING,
    class_colours,
    given_colours,
    instance_colours,
    number_colours,
    vector_colours,
)
from lightning_uncertainty._show.parity import Classified, Paired, draw_parity
from lightning_uncertainty._show.plot import axes_or_new, load_pyplot, require_matplotlib, unit_axes
from lightning_uncertainty._show.sheet import Column, Scale, cell_of, draw_sheet, fitted
from lightning_uncertainty._show.table import render

__all__ = [
    "MISSING",
    "Classified",
    "Column",
    "Paired",
    "Scale",
    "axes_or_new",
    "cell_of",
    "class_colours",
    "draw_parity",
    "draw_sheet",
    "fitted",
    "given_colours",
    "instance_colours",
    "load_pyplot",
    "number_colours",
    "render",
    "require_matplotlib",
    "unit_axes",
    "vector_colours",
]
