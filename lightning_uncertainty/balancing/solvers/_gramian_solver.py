"""The contract of a solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_uncertainty._tensors import Loadable

__all__ = ["GramianSolver", "on_host", "waits"]


class GramianSolver(Loadable, ABC):
    """Weights the gradients of T tasks by what their Gramian tells.

    Subclass it as a frozen dataclass to have a solver of your own. A task that is absent, or whose gradient is zero,
    has a row and a column of zeros: its weight must be 0, and the others' as if it were not there.

    Attributes:
        scale_free: the unit of the gradients does not matter: `k G` gives the weights of `G`.
        deterministic: nothing is drawn: the weights are those of the Gramian and the losses alone.
        permutes: another order of the tasks gives the same weights in that order.
    """

    scale_free: ClassVar[bool]
    deterministic: ClassVar[bool]
    permutes: ClassVar[bool]

    @property
    def divides_by_losses(self) -> bool:
        """Whether the weights make sense for positive losses alone."""
        return False

    @abstractmethod
    def __call__(self, gramian: Tensor, losses: Tensor, draw: Tensor) -> Tensor:
        """Return the weights `[T]` of the tasks' gradients.

        Args:
            gramian: inner products of the gradients, `[T, T]`, float64 where the device has it. Where it is not
                finite, any weights will do.
            losses: the tasks' losses `[T]`, of the same type.
            draw: an int64 without dimensions, another one in every step and equal on all ranks: a seed.
        """

    def state(self) -> dict[str, Any]:
        """Return what the solver remembers from one step to the next: builtins and tensors, empty where nothing."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Remember what `state` returned."""


def waits(device: torch.device) -> bool:
    """Whether a look at a value on this device would stall a queue of work: on GPUs that have float64."""
    return device.type == "cuda"


def on_host(gramian: Tensor) -> Tensor:
    """Return a Gramian as float64 on the CPU."""
    return gramian.detach().to("cpu", torch.float64)
