"""Colours of what a picture shows: classes, instances, numbers, vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["MISSING", "class_colours", "given_colours", "instance_colours", "number_colours", "vector_colours"]

MISSING = (128, 128, 128)  # of what has no label; the greys are nothing else's
_FIRST = (  # no two of which are alike, and none grey
    *("4363d8", "e6194b", "3cb44b", "ffe119", "f58231", "911eb4", "46f0f0", "f032e6", "bcf60c", "fabebe"),
    *("008080", "e6beff", "9a6324", "00ff00", "800000", "aaffc3", "808000", "0000ff", "000075"),
)
_GOLDEN = 0.618034  # of the circle of hues: neighbours in number are far apart


def class_colours(count: int) -> np.ndarray:
    """Return a colour for each of some classes `[C, 3]`, uint8.

    Example:
        >>> colours = class_colours(40)
        >>> colours.shape, len({tuple(colour) for colour in colours.tolist()})
        ((40, 3), 40)
    """
    numbers = np.arange(len(_FIRST), max(count, len(_FIRST)))
    hue = (_GOLDEN * numbers) % 1
    saturation = np.choose(numbers % 3, [0.75, 0.45, 0.95])
    value = np.choose(numbers // 3 % 3, [0.95, 0.6, 0.8])
    more = _from_hsv(np.stack([hue, saturation, value], -1))
    return np.concatenate([np.array([list(bytes.fromhex(one)) for one in _FIRST], np.uint8), more])[:count]


def given_colours(colours: Sequence[Any]) -> np.ndarray:
    """Return colours of the user's `[C, 3]`: triples from 0 to 255, or what matplotlib takes for one, as "#804080".

    Raises:
        ValueError: one is neither.

    Example:
        >>> given_colours([(128, 64, 128), "#46823c", "red"]).tolist()
        [[128, 64, 128], [70, 130, 60], [255, 0, 0]]
    """
    from matplotlib.colors import to_rgb

    found = []
    for colour in colours:
        try:
            if isinstance(colour, str):
                found.append([round(255 * part) for part in to_rgb(colour)])
            else:
                red, green, blue = (int(part) for part in colour)
                found.append(np.array([red, green, blue], np.uint8).tolist())
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"a colour should be three whole numbers from 0 to 255, or a text as '#804080': found {colour!r}"
            ) from error
    return np.array(found, np.uint8).reshape(-1, 3)


def instance_colours(ids: np.ndarray) -> np.ndarray:
    """Return the colours of instances by their ids `[H, W]`: of each its own, whatever the others; 0 is near black.

    Negative ids are no label, and grey.
    """
    colours = np.concatenate([np.array([[24, 24, 24]], np.uint8), class_colours(4096)])
    chosen = colours[np.where(ids > 0, 1 + (ids - 1) % 4096, 0)]
    return np.where((ids < 0)[..., None], np.array(MISSING, np.uint8), chosen)


def number_colours(values: np.ndarray, low: float, high: float, scale: str) -> np.ndarray:
    """Return the colours of numbers `[H, W]` on one of matplotlib's scales; what is not finite is grey."""
    from matplotlib import colormaps

    share = (values.astype(np.float64) - low) / max(high - low, np.finfo(np.float64).tiny)
    finite = np.isfinite(share)
    colours = colormaps[scale](np.clip(np.where(finite, share, 0.0), 0, 1), bytes=True)[..., :3]
    return np.where(finite[..., None], colours, np.array(MISSING, np.uint8)).astype(np.uint8)


def vector_colours(vectors: np.ndarray, longest: float) -> np.ndarray:
    """Return the colours of vectors `[2 or 3, H, W]`; what is not finite is grey.

    In the plane the direction is the hue and the length the saturation, white at zero, as optical flow is shown. In
    space they are `(v / longest + 1) / 2` as red, green and blue, as normals are shown.
    """
    finite = np.isfinite(vectors).all(0)
    parts = np.where(finite, vectors, 0.0).astype(np.float64) / max(longest, np.finfo(np.float64).tiny)
    if len(parts) == 2:
        hue = np.arctan2(parts[1], parts[0]) / (2 * np.pi) % 1
        length = np.clip(np.hypot(parts[0], parts[1]), 0, 1)
        colours = _from_hsv(np.stack([hue, length, np.ones_like(hue)], -1))
    else:
        colours = np.round(255 * np.clip((parts + 1) / 2, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    return np.where(finite[..., None], colours, np.array(MISSING, np.uint8))


def _from_hsv(hsv: np.ndarray) -> np.ndarray:
    """Return red, green and blue `[..., 3]`, uint8, of hue, saturation and value from 0 to 1."""
    hue, saturation, value = np.moveaxis(hsv, -1, 0)
    turn = (np.array([5.0, 3.0, 1.0]) + 6 * hue[..., None]) % 6
    shade = np.clip(np.minimum(turn, 4 - turn), 0, 1)
    colours: np.ndarray = np.round(255 * value[..., None] * (1 - saturation[..., None] * shade)).astype(np.uint8)
    return colours
