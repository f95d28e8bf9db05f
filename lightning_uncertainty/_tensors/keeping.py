"""What a compiled backward must not make anew."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["keep_for_backward"]


@torch.library.custom_op("lightning_uncertainty::keep", mutates_args=(), schema="(Tensor x) -> Tensor")
def _keep(x: Tensor) -> Tensor:
    return x.clone()


@_keep.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def keep_for_backward(x: Tensor) -> Tensor:
    """Return `x`, which has no gradient and is made of a buffer that this step changes, for use in the objective.

    torch.compile saves a buffer rather than what is made of it, as that costs no memory, and computes it again in
    backward: from the buffer as it is by then, so that the gradient is another step's. An operation that the compiler
    cannot look into is computed once.

    Example:
        >>> keep_for_backward(torch.tensor([2.0]))
        tensor([2.])
    """
    kept: Tensor = _keep(x) if torch.compiler.is_compiling() else x
    return kept
