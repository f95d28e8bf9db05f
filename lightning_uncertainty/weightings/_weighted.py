"""What a weighting returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Weighted"]


class Weighted(NamedTuple):
    """What a weighting makes of T losses.

    Attributes:
        total: the scalar to minimise.
        weights: effective weights `[T]`, d total / d loss, detached; 0 where a task is absent.
        log_variances: `[T]`, detached; None for a weighting without log-variances.
    """

    total: Tensor
    weights: Tensor
    log_variances: Tensor | None
