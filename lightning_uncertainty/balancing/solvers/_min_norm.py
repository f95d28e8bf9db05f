"""The shortest convex combination of T gradients, from their Gramian."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["LARGEST_ENUMERATED", "active_set", "between_two", "every_support", "frank_wolfe"]

Array = NDArray[np.float64]
Face = NDArray[np.bool_]

LARGEST_ENUMERATED = 10
"""Up to so many tasks `every_support` is quick: it solves 2^T - 1 systems."""

_RIDGE = 1e-14  # of cosines: keeps faces of dependent gradients solvable, and costs as much of the squared length
_TOLERANCE = 1e-13  # of cosines: what rounding leaves of an optimality condition that holds
_EXCHANGES = 12  # rounds of block pivoting; more, as with gradients that all but depend on each other, may be a cycle


def active_set(gramian: Array) -> Array:
    """Return convex weights `[T]` of the shortest combination, up to rounding; tasks with a zero diagonal have 0.

    Gradients are first brought to length 1, `G = D C D`, as rounding otherwise drowns short ones. With `u = min(d) / d`
    the weights are `u y / sum(u y)`, where y minimises `y' (C + u u') y / 2 - u' y` over `y >= 0`. The
    search goes from face to face of the orthant.
    """
    weights = np.zeros(len(gramian))
    if not np.isfinite(gramian).all():
        return weights + np.nan
    lengths = np.sqrt(np.maximum(gramian.diagonal(), 0.0))
    seen = lengths > 0
    if not seen.all():
        if seen.any():
            weights[seen] = active_set(gramian[np.ix_(seen, seen)])
        return weights
    unit = lengths.min() / lengths
    system = gramian / np.outer(lengths, lengths) + np.outer(unit, unit)
    system.flat[:: len(unit) + 1] += _RIDGE
    weights = _nonnegative(system, unit) * unit
    if not weights.any():  # the matrix is no Gramian
        weights[lengths.argmin()] = 1.0
    normalised: Array = weights / weights.sum()
    return normalised


def _nonnegative(system: Array, unit: Array) -> Array:
    """Return the `y >= 0` that minimises `y' system y / 2 - unit' y`, by block pivoting.

    Source: Kim & Park, "Fast Nonnegative Matrix Factorization: An Active-Set-Like Method and Comparisons", SIAM J. Sci.
    Comput. 2011, Section 4, with another way out.
    """
    face = np.ones(len(unit), dtype=bool)
    y = _minimum(system, unit, face)
    for _ in range(_EXCHANGES):
        wrong = np.where(face, y <= 0, unit - system @ y > _TOLERANCE)
        if not wrong.any():
            return y
        face = face ^ wrong
        y = _minimum(system, unit, face)
    return _one_by_one(system, unit, face & (y > 0))


def _one_by_one(system: Array, unit: Array, face: Face) -> Array:
    """Return the same by the method of Lawson and Hanson, which takes more solves, each of which is a gain."""
    y = _minimum(system, unit, face)
    while not face.any() or (y[face] <= 0).any():
        face = face & (y > 0) if face.any() else np.arange(len(unit)) == unit.argmax()
        y = _minimum(system, unit, face)
    for _ in range(3 * len(unit)):  # more than it takes; rounding must not keep it going
        slope = np.where(face, 0.0, unit - system @ y)
        if slope.max() <= _TOLERANCE:
            break
        y, face = _descended(system, unit, y, face | (slope == slope.max()))
    return y


def _descended(system: Array, unit: Array, y: Array, face: Face) -> tuple[Array, Face]:
    """Go from y to the minimum on a face, without the numbers that would turn negative; return it, and that face."""
    while face.any():
        target = _minimum(system, unit, face)
        negative = face & (target <= 0)
        if not negative.any():
            return target, face
        steps = y[negative] / (y[negative] - target[negative])
        y = np.maximum(y + steps.min() * (target - y), 0.0)
        y[np.flatnonzero(negative)[steps == steps.min()]] = 0.0
        face = face & (y > 0)
    return y, face


def _minimum(system: Array, unit: Array, face: Face) -> Array:
    """Return the minimum on a face, where numbers may have any sign."""
    if face.all():
        return _solved(system, unit)
    y = np.zeros(len(unit))
    on = face.nonzero()[0]
    y[on] = _solved(system[on[:, None], on], unit[on])
    return y


def _solved(matrix: Array, right: Array) -> Array:
    try:
        return np.asarray(np.linalg.solve(matrix, right), dtype=np.float64)
    except np.linalg.LinAlgError:  # rounding has made it singular to the last digit
        return np.asarray(np.linalg.lstsq(matrix, right, rcond=None)[0], dtype=np.float64)


def every_support(gramian: Tensor) -> Tensor:
    """Return what `active_set` does, from all sets of tasks at once: kernels on the device, no look at a value."""
    tasks, device = len(gramian), gramian.device
    seen = gramian.diagonal() > 0
    lengths = torch.where(seen, gramian.diagonal(), 1.0).sqrt()
    unit = torch.where(seen, torch.where(seen, lengths, torch.inf).amin() / lengths, 0.0)
    cosines = gramian / (lengths[:, None] * lengths)
    bits = torch.arange(tasks, device=device)
    supports = (torch.arange(1, 2**tasks, device=device)[:, None] >> bits) & 1 == 1
    system = torch.where(supports[:, :, None] & supports[:, None], cosines + unit[:, None] * unit, 0.0)
    system.diagonal(dim1=1, dim2=2).add_(torch.where(supports, _RIDGE, 1.0))
    y = torch.linalg.solve_ex(system, torch.where(supports, unit, 0.0))[0]  # solve would wait for the device
    y = torch.where(supports & seen, y, 0.0).clamp(min=0.0)
    squares = (y @ cosines * y).sum(1) / (y @ unit).square()
    best = torch.where(squares.isfinite(), squares, torch.inf).argmin(0, keepdim=True)
    weights = y.index_select(0, best)[0] * unit
    return torch.where(seen, weights / weights.sum(), 0.0)


def frank_wolfe(gramian: Array, iterations: int, tolerance: float) -> Array:
    """Return weights `[T]` after so many steps to the best vertex, or when a step is no longer than the tolerance."""
    seen = gramian.diagonal() > 0
    weights: Array = seen / max(seen.sum(), 1)
    for _ in range(iterations if seen.any() and np.isfinite(gramian).all() else 0):
        slopes = gramian @ weights
        best = int(np.where(seen, slopes, np.inf).argmin())
        step = between_two(float(gramian[best, best]), float(slopes[best]), float(slopes @ weights))
        weights = (1 - step) * weights
        weights[best] += step
        if step <= tolerance:
            break
    return weights


def between_two(first: float, product: float, second: float) -> float:
    """Return the first gradient's weight in the shortest combination of two, from squared lengths and product.

    Sener & Koltun, NeurIPS 2018, Algorithm 1.
    """
    if product >= first:
        return 1.0
    if product >= second:
        return 0.0
    return (second - product) / (first + second - 2 * product)
