"""Fixed weights that give way to those of a weighting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_uncertainty._tensors import keep_for_backward

__all__ = ["Blend"]


class Blend:
    r"""The total `(1 - λ) Σ w L + λ own`, over the tasks present, and the effective weights `(1 - λ) w + λ own`.

    Plain tensors, no buffers: those would come and go beneath whoever pairs the buffers of two copies of a module, as
    averages of weights do, and would be broadcast by DDP.

    Args:
        weights: `w`, in the order of the tasks.
        like: has the device and the type to use.

    Attributes:
        share: `λ`, 0-dimensional, at first 0; fill it in place, so that a compiled step need not be compiled anew.
    """

    def __init__(self, weights: Sequence[float], like: Tensor) -> None:
        self._numbers = tuple(weights)
        self._weights = like.new_tensor(self._numbers)
        self.share = like.new_zeros(())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # it belongs to a fit and its warm-up: copies of a weighting have none

    def move(self, like: Tensor) -> None:
        """Take on another device or type, without loss of digits."""
        self._weights = like.new_tensor(self._numbers)
        self.share = self.share.to(like)

    def __call__(self, total: Tensor, weights: Tensor, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return total and effective weights `[T]`, from the weighting's own."""
        share = keep_for_backward(self.share.clone())  # it may be filled before a backward
        fixed = (1 - share) * self._weights * present
        return (fixed * losses).sum() + share * total, fixed + share * weights
