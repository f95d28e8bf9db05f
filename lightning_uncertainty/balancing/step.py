"""What a training step tells a weighting that looks at gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

__all__ = ["Step"]


class Step(NamedTuple):
    """What a training step made of its losses.

    Attributes:
        total: the weighted total.
        losses: mean losses of the global batch, `[T]`.
        weights: effective weights `[T]`.
        parts: what the losses were made of, by task: the sum or mean that was given, where it has a gradient.
        shared: trained parameters that the tasks share; these and the next two only where the weighting needs them.
        others: all others, but for the weighting's own.
        own: the weighting's own.
    """

    total: Tensor
    losses: Tensor
    weights: Tensor
    parts: Mapping[str, Tensor]
    shared: Sequence[nn.Parameter] = ()
    others: Sequence[nn.Parameter] = ()
    own: Sequence[nn.Parameter] = ()

    def numbers(self) -> Step:
        """Return the numbers alone, which keep no graph alive."""
        return Step(self.total.detach(), self.losses.detach(), self.weights, {})
