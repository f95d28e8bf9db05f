"""A sheet of panels: rows are images, columns what is shown of them, with headings, scales and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from lightning_uncertainty._show.colours import number_colours, vector_colours

__all__ = ["Column", "Scale", "cell_of", "draw_sheet", "fitted"]

_GAP, _LINE, _BAR = 8, 18, 10  # pixels
_LEAST = 128  # longest side of a cell: a heading must fit above it
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


class Scale(NamedTuple):
    """What the colours of a column mean.

    Attributes:
        name: of one of matplotlib's scales; "hue" for vectors.
        low: the number at its left end.
        high: that at its right end; for vectors the length of the full colour.
    """

    name: str
    low: float
    high: float


class Column(NamedTuple):
    """A column of a sheet.

    Attributes:
        title: its heading.
        panels: `[H, W, 3]`, uint8, one for each row.
        scale: drawn below; None for colours that are no numbers.
    """

    title: str
    panels: Sequence[np.ndarray]
    scale: Scale | None = None


def cell_of(height: int, width: int, most: int) -> tuple[int, int]:
    """Return height and width of the cells for panels of a size: its longest side is at most `most`, at least 128.

    Example:
        >>> cell_of(1024, 2048, 256), cell_of(28, 28, 256)
        ((128, 256), (140, 140))
    """
    longest = max(height, width)
    if longest > most:
        return max(1, round(height * most / longest)), max(1, round(width * most / longest))
    times = min(-(-_LEAST // longest), max(1, most // longest))  # whole, so that pixels stay square and alike
    return height * times, width * times


def fitted(panel: np.ndarray, cell: tuple[int, int], smooth: bool = False) -> np.ndarray:
    """Return a panel in the size of a cell, in its own proportions, on white where it does not fill it.

    Args:
        panel: `[H, W, 3]` or `[H, W]`, uint8.
        cell: height and width.
        smooth: whether to average pixels, as of a photograph; else the nearest is taken, so that colours stay exact.
    """
    from PIL import Image

    height, width = panel.shape[:2]
    share = min(cell[0] / height, cell[1] / width)
    size = max(1, round(height * share)), max(1, round(width * share))
    way = Image.Resampling.BOX if smooth and share < 1 else Image.Resampling.NEAREST
    scaled = np.asarray(Image.fromarray(panel).resize(size[::-1], way)) if size != (height, width) else panel
    if size == cell:
        return scaled
    whole = np.full((*cell, *panel.shape[2:]), 255, np.uint8)
    top, left = (cell[0] - size[0]) // 2, (cell[1] - size[1]) // 2
    whole[top : top + size[0], left : left + size[1]] = scaled
    return whole


def draw_sheet(
    title: str, columns: Sequence[Column], cell: tuple[int, int], legend: Sequence[tuple[str, Sequence[int]]] = ()
) -> np.ndarray:
    """Return a sheet as pixels `[H, W, 3]`, uint8.

    Args:
        title: the line above all.
        columns: of panels, in the size of the cells.
        cell: height and width.
        legend: names and their colours, below.
    """
    from PIL import Image, ImageDraw

    rows = max(len(column.panels) for column in columns)
    width = len(columns) * (cell[1] + _GAP) + _GAP
    entries = _wrapped(legend, width - 2 * _GAP)
    below = _BAR + _LINE + _GAP if any(column.scale for column in columns) else 0
    top = 2 * _LINE + 2 * _GAP
    bottom = top + rows * (cell[0] + _GAP)
    sheet = Image.new("RGB", (width, bottom + below + len(entries) * _LINE + (_GAP if entries else 0)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_GAP, _GAP), title, width - 2 * _GAP)
    for number, column in enumerate(columns):
        left = _GAP + number * (cell[1] + _GAP)
        _write(draw, (left, _GAP + _LINE), column.title, cell[1])
        for row, panel in enumerate(column.panels):
            sheet.paste(Image.fromarray(np.ascontiguousarray(panel)), (left, top + row * (cell[0] + _GAP)))
        if column.scale is not None:
            sheet.paste(Image.fromarray(_bar(column.scale, cell[1])), (left, bottom))
            low, middle, high = _marks(column.scale)
            _write(draw, (left, bottom + _BAR + 1), low, cell[1] // 3)
            _write(draw, (left + (cell[1] - _length(middle)) // 2, bottom + _BAR + 1), middle, cell[1] // 2)
            _write(draw, (left + cell[1] - _length(high), bottom + _BAR + 1), high, cell[1] // 3)
    for line, parts in enumerate(entries):
        upper = bottom + below + line * _LINE
        for left, name, colour in parts:
            draw.rectangle((_GAP + left, upper + 3, _GAP + left + 11, upper + 14), fill=tuple(colour))
            _write(draw, (_GAP + left + 16, upper), name, width)
    return np.asarray(sheet)


def _marks(scale: Scale) -> tuple[str, str, str]:
    """Return what stands below the left end, the middle and the right end of a scale."""
    if scale.name == "hue":  # a direction has two ends, the length of a full colour none
        return "0°", f"≤ {scale.high:.3g}", "360°"
    return f"{scale.low:.3g}", "", f"{scale.high:.3g}"


def _bar(scale: Scale, width: int) -> np.ndarray:
    """Return the colours of a scale as a strip."""
    if scale.name == "hue":  # all directions, at their full length
        angle = np.tile(np.linspace(0, 2 * np.pi, width, endpoint=False), (_BAR, 1))
        return vector_colours(np.stack([np.cos(angle), np.sin(angle)]), 1.0)
    return number_colours(np.tile(np.linspace(0, 1, width), (_BAR, 1)), 0, 1, scale.name)


def _wrapped(legend: Sequence[tuple[str, Sequence[int]]], width: int) -> list[list[tuple[int, str, Sequence[int]]]]:
    """Return lines of entries, each with its distance from the left."""
    lines: list[list[tuple[int, str, Sequence[int]]]] = []
    left = width
    for name, colour in legend:
        needed = 28 + _length(name)
        if left + needed > width:
            lines.append([])
            left = 0
        lines[-1].append((left, name, colour))
        left += needed
    return lines


@lru_cache(maxsize=1)
def _font() -> Any:
    """Return matplotlib's own font, which has Greek letters; Pillow's has none."""
    from pathlib import Path

    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 12)


def _length(text: str) -> int:
    return int(np.ceil(_font().getlength(text)))


def _write(draw: Any, place: tuple[int, int], text: str, most: int) -> None:
    """Write a line, cut where it is longer than there is room."""
    if _length(text) > most:
        while text and _length(f"{text}…") > most:
            text = text[:-1]
        text = f"{text}…"
    draw.text(place, text, fill=_INK, font=_font())
