"""A clamp that lets the gradient back in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["one_way_clamp"]


class _OneWayClamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward(x, low, high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, low, high = ctx.saved_tensors
        outward = ((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0))  # where descent leads
        return torch.where(outward, 0.0, gradient), None, None


def one_way_clamp(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clamp `x` between bounds, with the gradient of `x` itself unless descent would lead further out.

    A clamp has no gradient outside: what once left never returns. A smooth squeeze has one that fades: under Adam it
    takes hundreds to thousands of steps back. Here what leads out is dropped, so `x` stays within about a step of its
    bound, and what leads in is kept whole.

    Example:
        >>> x = torch.tensor([-7.0, -7.0, 0.5], requires_grad=True)
        >>> y = one_way_clamp(x, torch.tensor(-1.0), torch.tensor(1.0))
        >>> (torch.tensor([1.0, -1.0, 1.0]) * y).sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([-1.0, -1.0, 0.5], [0.0, -1.0, 1.0])
    """
    clamped: Tensor = _OneWayClamp.apply(x, low, high)  # type: ignore[no-untyped-call]
    return clamped
