"""From predictions and labels of some images to the columns of a sheet, by what a task predicts."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import numpy as np

from lightning_uncertainty._show import (
    MISSING,
    Column,
    Scale,
    fitted,
    instance_colours,
    number_colours,
    vector_colours,
)

__all__ = ["Sheet", "Shown", "class_sheet", "event_sheet", "free_columns", "number_sheet", "vector_sheet"]

_RIGHT, _WRONG = (24, 24, 24), (230, 60, 50)
_VALUES, _SPREAD = "viridis", "magma"  # of what is predicted; of errors and uncertainties


class Shown(NamedTuple):
    """What is shown of a task on one image, float64.

    Attributes:
        mean: `[C, H, W]`.
        label: `[C, H, W]`, of classes `[H, W]`; NaN where none is observed. None where nobody knows the labels.
        aleatoric: as the label; NaN where none is stated.
        epistemic: as the label.
    """

    mean: np.ndarray
    label: np.ndarray | None
    aleatoric: np.ndarray
    epistemic: np.ndarray


class Sheet(NamedTuple):
    """A sheet before it is drawn.

    Attributes:
        columns: behind that of the pictures.
        note: what its title says besides.
        legend: names and colours.
    """

    columns: list[Column]
    note: str = ""
    legend: Sequence[tuple[str, Sequence[int]]] = ()


def class_sheet(
    images: Sequence[Shown], cell: tuple[int, int], names: Sequence[str], colours: np.ndarray, sampled: bool
) -> Sheet:
    """Show classes in their colours, where they are wrong, and the entropy of each pixel."""
    predicted = [image.mean.argmax(0) for image in images]
    columns = [_column("prediction", [colours[classes] for classes in predicted], cell)]
    there = [image.label for image in images if image.label is not None]
    note = ""
    if len(there) == len(images):
        columns.insert(0, _column("truth", [_of_classes(label, colours) for label in there], cell))
        wrong = [
            np.where(np.isnan(label)[..., None], MISSING, np.where((label == one)[..., None], _RIGHT, _WRONG))
            for label, one in zip(there, predicted, strict=True)
        ]
        labels = sum(int((~np.isnan(label)).sum()) for label in there)
        missed = sum(
            int((label != one).sum()) - int(np.isnan(label).sum()) for label, one in zip(there, predicted, strict=True)
        )
        note = f"{100 * missed / labels:.1f} % wrong" if labels else "no labels"
        columns.append(_column("error", [panel.astype(np.uint8) for panel in wrong], cell))
    columns += _entropies(images, cell, log(len(colours)), sampled)
    found = np.unique(np.concatenate([part[~np.isnan(part)].ravel() for part in [*there, *map(np.asarray, predicted)]]))
    return Sheet(columns, note, [(names[int(one)], colours[int(one)].tolist()) for one in found])


def event_sheet(images: Sequence[Shown], cell: tuple[int, int], sampled: bool) -> Sheet:
    """Show the probability of an event, its distance from what happened, and its entropy."""
    whole = Scale(_VALUES, 0.0, 1.0)
    columns, errors = _truth_and_prediction(images, cell, whole)
    if errors is not None:
        columns.append(_numbers("error", errors, cell, Scale(_SPREAD, 0.0, 1.0)))
    return Sheet(columns + _entropies(images, cell, log(2), sampled))


def number_sheet(images: Sequence[Shown], cell: tuple[int, int], sampled: bool) -> Sheet:
    """Show numbers, the size of their error, and σ on the same scale, so that the two can be compared."""
    known = [image.label for image in images if image.label is not None]
    low, high = _range(known) or _range([image.mean for image in images]) or (0.0, 1.0)
    columns, errors = _truth_and_prediction(images, cell, Scale(_VALUES, low, high))
    return _with_spread(columns, errors, images, cell, sampled)


def vector_sheet(images: Sequence[Shown], cell: tuple[int, int], sampled: bool) -> Sheet:
    """Show directions as hue, of normals as they are usually shown, and the length of the error, of normals its angle.

    Vectors of three parts whose labels all have length one are normals.
    """
    labels = [image.label for image in images if image.label is not None]
    lengths = np.concatenate([np.linalg.norm(part, axis=0).ravel() for part in labels or [one.mean for one in images]])
    lengths = lengths[np.isfinite(lengths)]
    longest = float(np.quantile(lengths, 0.99)) if lengths.size else 1.0
    flat = len(images[0].mean) == 2
    normals = not flat and bool(lengths.size) and bool(np.abs(lengths - 1).max() < 0.05)
    scale = Scale("hue", 0.0, longest) if flat else None
    means = [_unit(image.mean) if normals else image.mean for image in images]
    columns = [_column("prediction", [vector_colours(mean, longest) for mean in means], cell, scale)]
    if len(labels) < len(images):
        return _with_spread(columns, None, images, cell, sampled)
    columns.insert(0, _column("truth", [vector_colours(label, longest) for label in labels], cell, scale))
    if normals:
        angles = [
            np.degrees(np.arccos(np.clip((mean * label).sum(0), -1, 1)))
            for mean, label in zip(means, labels, strict=True)
        ]
        columns.append(_numbers("error [°]", angles, cell, Scale(_SPREAD, 0.0, _top(angles))))
        return _with_spread(columns, None, images, cell, sampled)
    errors = [np.linalg.norm(mean - label, axis=0) for mean, label in zip(means, labels, strict=True)]
    return _with_spread(columns, errors, images, cell, sampled)


def free_columns(panels: Sequence[tuple[str, Sequence[np.ndarray]]], cell: tuple[int, int]) -> list[Column]:
    """Show what a function of the user's gives: ids in distinct colours, numbers, vectors, or pixels as they are.

    Args:
        panels: title and arrays, one for each image: whole numbers `[H, W]` are ids; others `[H, W]` numbers;
            `[2, H, W]` vectors; `[3, H, W]` pixels, uint8 or from 0 to 1.
        cell: height and width.
    """
    columns = []
    for title, arrays in panels:
        if arrays[0].ndim == 2 and arrays[0].dtype.kind in "iub":
            columns.append(_column(title, [instance_colours(ids.astype(np.int64)) for ids in arrays], cell))
        elif arrays[0].ndim == 2:
            columns.append(_numbers(title, arrays, cell, Scale(_VALUES, *(_range(arrays) or (0.0, 1.0)))))
        elif len(arrays[0]) == 2:
            longest = _top([np.linalg.norm(vectors, axis=0) for vectors in arrays])
            hues = [vector_colours(vectors, longest) for vectors in arrays]
            columns.append(_column(title, hues, cell, Scale("hue", 0.0, longest)))
        else:
            pixels = [x if x.dtype == np.uint8 else np.round(255 * np.clip(x, 0, 1)).astype(np.uint8) for x in arrays]
            columns.append(_column(title, [np.ascontiguousarray(x.transpose(1, 2, 0)) for x in pixels], cell))
    return columns


def _with_spread(
    columns: list[Column],
    errors: Sequence[np.ndarray] | None,
    images: Sequence[Shown],
    cell: tuple[int, int],
    sampled: bool,
) -> Sheet:
    """Add the errors and what σ says of them, on the scale of the errors; σ that is one number is told in the note.

    Where nothing is observed, σ may be anything: it has no part in the scale. The epistemic σ, mostly far smaller, has
    one of its own.
    """
    columns, note = list(columns), ""
    top = Scale(_SPREAD, 0.0, 1.0 if errors is None else _top(errors))
    if errors is not None:
        columns.append(_numbers("error", errors, cell, top))
    aleatoric = [_length(image.aleatoric) for image in images]
    known = np.concatenate([part[np.isfinite(part)] for part in aleatoric])
    if known.size and np.ptp(known) > 1e-6 * known.max():
        scale = Scale(_SPREAD, 0.0, _top(aleatoric)) if errors is None else top
        columns.append(_numbers("aleatoric σ", aleatoric, cell, scale))
    elif known.size:
        note = f"σ {images[0].aleatoric.flat[0]:.3g}"  # of a scalar, as everywhere, not of a vector's length
    if sampled:
        epistemic = [_length(image.epistemic) for image in images]
        columns.append(_numbers("epistemic σ", epistemic, cell, Scale(_SPREAD, 0.0, _top(epistemic))))
    return Sheet(columns, note)


def _truth_and_prediction(
    images: Sequence[Shown], cell: tuple[int, int], scale: Scale
) -> tuple[list[Column], list[np.ndarray] | None]:
    """Return columns of numbers, and their absolute errors where labels are known."""
    columns = [_numbers("prediction", [image.mean[0] for image in images], cell, scale)]
    labels = [image.label[0] for image in images if image.label is not None]
    if len(labels) < len(images):
        return columns, None
    errors = [np.abs(image.mean[0] - label) for image, label in zip(images, labels, strict=True)]
    return [_numbers("truth", labels, cell, scale), *columns], errors


def _entropies(images: Sequence[Shown], cell: tuple[int, int], most: float, sampled: bool) -> list[Column]:
    """Return entropies in nats; those of samples are parted in two."""
    scale = Scale(_SPREAD, 0.0, most)
    parts = [_plane(image.aleatoric) for image in images]
    if not sampled:
        return [_numbers("entropy [nats]", parts, cell, scale)]
    others = [_plane(image.epistemic) for image in images]
    smaller = Scale(_SPREAD, 0.0, min(most, _top(others)))
    return [_numbers("aleatoric [nats]", parts, cell, scale), _numbers("epistemic [nats]", others, cell, smaller)]


def _of_classes(label: np.ndarray, colours: np.ndarray) -> np.ndarray:
    known = ~np.isnan(label)
    return np.where(known[..., None], colours[np.where(known, label, 0).astype(int)], np.array(MISSING, np.uint8))


def _column(title: str, panels: Sequence[np.ndarray], cell: tuple[int, int], scale: Scale | None = None) -> Column:
    return Column(title, [fitted(panel, cell) for panel in panels], scale)


def _numbers(title: str, values: Sequence[np.ndarray], cell: tuple[int, int], scale: Scale) -> Column:
    panels = [number_colours(part, scale.low, scale.high, scale.name) for part in values]
    return _column(title, panels, cell, scale)


def _plane(values: np.ndarray) -> np.ndarray:
    return values[0] if values.ndim == 3 else values


def _length(values: np.ndarray) -> np.ndarray:
    """Return the root of the sum of squares over channels."""
    return np.sqrt((values**2).sum(0)) if values.ndim == 3 else values


def _unit(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=0, keepdims=True), 1e-12)
    return unit


def _range(parts: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """Return the 1 % and 99 % of all finite numbers; None where there are none."""
    known = np.concatenate([part[np.isfinite(part)].ravel() for part in parts]) if parts else np.zeros(0)
    if not known.size:
        return None
    low, high = np.quantile(known, [0.01, 0.99])
    return float(low), float(high)


def _top(parts: Sequence[np.ndarray]) -> float:
    """Return the 99 % of all finite numbers; 1 where there are none, or it is zero."""
    found = _range(parts)
    return found[1] if found is not None and found[1] > 0 else 1.0
