"""Random numbers that are functions of integers: no generator with a state to be lost, or to differ between ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["normal", "uniform", "uniform_on_host"]

# in two's complement, as all arithmetic is modulo 2^64
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)
_BITS = 23  # of a uniform number: half a step more is exact in float32


def uniform(*keys: Tensor | int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a number in (0, 1) for integer keys, which are broadcast; the same for the same keys, anywhere.

    Keys that differ in one bit give independent numbers. It is the mixing function of SplitMix64, on the device of the
    keys and without a read from there; all floating types get the same numbers.

    Source: Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.

    Args:
        keys: at least one, int64 tensors or numbers that fit; one a tensor.
        dtype: float32 or float64.

    Example:
        >>> uniform(7, torch.arange(3))
        tensor([0.7215, 0.1559, 0.8744])
    """
    high: Tensor = _logical_shift(_hashed(*keys), 64 - _BITS)
    return (high.to(dtype) + 0.5) * 2.0**-_BITS


def uniform_on_host(*keys: np.ndarray | int) -> np.ndarray:
    """Return what `uniform` does of int64 arrays of one dimension or more, or numbers: a fifth of the time, of few."""
    high = _logical_shift(_hashed_from(np.zeros(1, np.int64), keys), 64 - _BITS)
    numbers: np.ndarray = (high + 0.5) * 2.0**-_BITS
    return numbers


def normal(*keys: Tensor | int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a standard normal number for integer keys, as `uniform` does; by Box & Muller, 1958."""
    radius = (-2 * uniform(*keys, 0, dtype=dtype).log()).sqrt()
    return radius * (2 * math.pi * uniform(*keys, 1, dtype=dtype)).cos()


def _hashed(*keys: Tensor | int) -> Tensor:
    """Return an int64 for int64 keys."""
    hashed: Tensor = _hashed_from(torch.zeros_like(next(key for key in keys if isinstance(key, Tensor))), keys)
    return hashed


def _hashed_from(mixed: Any, keys: Sequence[Any]) -> Any:
    """Return an int64 for int64 keys, all tensors or all arrays of one dimension or more: these wrap around."""
    for key in keys:
        mixed = _mixed(mixed + key + _GOLDEN)
    return mixed


def _mixed(x: Any) -> Any:
    x = (x ^ _logical_shift(x, 30)) * _FIRST
    x = (x ^ _logical_shift(x, 27)) * _SECOND
    return x ^ _logical_shift(x, 31)


def _logical_shift(x: Any, bits: int) -> Any:
    """Shift to the right as if the number were unsigned."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
