"""Local maxima of smoothed counts of votes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["check_peaks", "peaks_of"]

CELLS = 2**18
"""How many cells of maps are counted at once: what stays near the processor."""


def check_peaks(**options: float) -> None:
    """Raise where there is no such option of "peaks", or it has no meaning.

    Raises:
        ValueError: so it is.
    """
    rules = {"sigma": "positive", "radius": "a whole number, 1 or more", "least": "0 or more"}
    for option, value in options.items():
        if option not in rules:
            raise ValueError(f"options of peaks should be among {', '.join(rules)}: found {option}")
        low = value >= 0 if option == "least" else value > 0
        if not low or (option == "radius" and value != int(value)):
            raise ValueError(f"{option} should be {rules[option]}: found {value!r}")


def peaks_of(cells: Tensor, shape: torch.Size, *, sigma: float = 2.0, radius: int = 5, least: float = 6.0) -> Tensor:
    """Return the centres `[P, 3]`, map, row and column, in this order.

    Args:
        cells: the cell that each vote is for `[N]`, counted through the maps, map after map.
        shape: number of maps, height and width.
        sigma: of the Gaussian that smooths the counts, in pixels.
        radius: within which there is one maximum, in pixels; the first of several alike.
        least: how many votes a maximum needs.
    """
    size = shape[1] * shape[2]
    first = torch.arange(size, 0, -1, dtype=torch.float32, device=cells.device).reshape(shape[1:])
    each = max(1, CELLS // size)
    starts, found = range(0, shape[0], each), [cells.new_zeros(0, 3)]
    ends = torch.searchsorted(cells // size, torch.tensor(starts[1:], dtype=torch.int64, device=cells.device))
    for start, part in zip(starts, torch.tensor_split(cells, ends.tolist()), strict=bool(shape[0])):
        maps = min(each, shape[0] - start)
        counts = torch.bincount(part - start * size, minlength=maps * size).to(torch.float32)
        smooth = _smoothed(counts.reshape(maps, *shape[1:]), sigma)
        order = torch.where((smooth == _most(smooth, int(radius))) & (smooth >= max(least, 1e-9)), first, 0.0)
        centres = ((order > 0) & (order == _most(order, int(radius)))).nonzero()
        centres[:, 0] += start
        found.append(centres)
    return torch.cat(found)


def _smoothed(counts: Tensor, sigma: float) -> Tensor:
    """Return sums `[M, H, W]` of counts around, each times `exp(-d² / 2σ²)`, by shifts: exact on any device."""
    far = max(1, int(3 * sigma))
    for dim, pad in ((-2, (0, 0, far, far)), (-1, (far, far))):
        size, wide = counts.shape[dim], F.pad(counts, pad)
        counts = counts.clone()
        for step in range(1, far + 1):
            both = wide.narrow(dim, far - step, size) + wide.narrow(dim, far + step, size)
            counts.add_(both, alpha=math.exp(-(step**2) / (2 * sigma**2)))
    return counts


def _most(values: Tensor, radius: int) -> Tensor:
    """Return the most `[M, H, W]` within a square around, by maxima of ever wider windows."""
    size = 2 * radius + 1
    for dim, pad in ((-2, (0, 0, radius, radius)), (-1, (radius, radius))):
        values, width = F.pad(values, pad, value=-math.inf), 1
        while width < size:
            step = min(width, size - width)
            left = values.shape[dim] - step
            values, width = torch.maximum(values.narrow(dim, 0, left), values.narrow(dim, step, left)), width + step
    return values
