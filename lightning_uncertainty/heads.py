"""Heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_uncertainty.precision import Float32Module, promote

__all__ = ["Rescale", "TaskHeads"]


class Rescale(Float32Module):
    """Map a head's output near 0 and 1 to label units: `mean + std · output`, both constants.

    Behind a linear layer it lets labels in grams train at a learning rate of 1e-3, while loss, σ and metrics stay in
    grams. It computes in float32: a body mass of 4207 g is not a bfloat16 number.

    Args:
        mean: mean of the training labels, one number or one per output channel.
        std: their standard deviation, positive, likewise.

    Raises:
        ValueError: a number is not finite, a deviation is not positive, or their counts differ.

    Shape:
        `[B, C, ...]` to `[B, C, ...]`, channels second.

    Example:
        >>> from torch import nn
        >>> head = nn.Sequential(nn.Linear(8, 1), Rescale(4207.0, 802.0))
        >>> head[1](torch.tensor([[0.0], [1.0]])).tolist()
        [[4207.0], [5009.0]]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        first = (torch.as_tensor(numbers, dtype=torch.float32, device="cpu").reshape(-1) for numbers in (mean, std))
        self._mean, self._std = (numbers.clone() for numbers in first)
        if self._mean.shape != self._std.shape:
            raise ValueError(f"mean and std should be of one length: found {len(self._mean)} and {len(self._std)}")
        if not (self._mean.isfinite().all() and self._std.isfinite().all() and (self._std > 0).all()):
            raise ValueError(
                f"mean should be finite and std positive: found {self._mean.tolist()} and {self._std.tolist()}; "
                "compute them from training labels that are not NaN"
            )
        self.register_buffer("mean", torch.empty(self._mean.shape, dtype=torch.float32))
        self.register_buffer("std", torch.empty(self._std.shape, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill both buffers (also after a meta device)."""
        self.mean.copy_(self._mean)
        self.std.copy_(self._std)

    def forward(self, output: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (output.dim() - 2)) if output.dim() > 1 else (-1,)
        with torch.autocast(output.device.type, enabled=False):
            return torch.addcmul(self.mean.reshape(shape), self.std.reshape(shape), promote(output))


class TaskHeads(nn.ModuleDict):
    """Heads by task, which load from checkpoints that know a task by an older name."""

    renamed: Mapping[str, str] = {}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for old, new in self.renamed.items():
            for key in [key for key in state_dict if key.startswith(f"{prefix}{old}.")]:
                state_dict[f"{prefix}{new}.{key.removeprefix(f'{prefix}{old}.')}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)
