"""A module whose numbers stay float32 when the model around it is cast to half precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor, nn

__all__ = ["Float32Module", "promote"]

_HALF = (torch.float16, torch.bfloat16)


def promote(x: Tensor) -> Tensor:
    """Return `x` in at least float32: half types are widened, float64 stays float64."""
    return x.float() if x.dtype in _HALF or not x.is_floating_point() else x


class Float32Module(nn.Module):
    """An `nn.Module` that ignores casts to float16 and bfloat16, its children's included.

    A log-variance in bfloat16 does not move at a learning rate of 1e-3: near 2 its neighbours are 0.0156 apart. Device
    moves, `.double()` and meta devices work as ever; only a cast that would lose digits is refused.

    Example:
        >>> Float32Module().bfloat16().dtypes()
        set()
        >>> class Scale(Float32Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.value = nn.Parameter(torch.tensor([1 / 3], dtype=torch.float32))
        >>> nn.Sequential(Scale()).to(torch.bfloat16)[0].dtypes()
        {torch.float32}
    """

    def dtypes(self) -> set[torch.dtype]:
        """Return the floating-point types of the parameters and buffers."""
        tensors = [*self.parameters(), *self.buffers()]
        return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float32Module:
        @wraps(fn)  # torchmetrics tells casts from moves by the function's name
        def without_half(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype in _HALF and tensor.dtype not in _HALF:
                return tensor.to(moved.device)  # from the original: the cast has already rounded
            return moved

        super()._apply(without_half, recurse)  # type: ignore[no-untyped-call]
        return self
