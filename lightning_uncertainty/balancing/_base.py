"""The contract of a weighting that looks at gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_uncertainty.balancing.step import Step
from lightning_uncertainty.weightings import Weighting

__all__ = ["BalancingWeighting", "balancing", "solved"]


class BalancingWeighting(Weighting):
    """Weighs the losses, and in backward sees the Gramian of the gradients that the tasks' losses have.

    Attributes:
        on: whose gradients it looks at.
        heads: whether the heads' own gradients are weighed by what it finds.
    """

    on: Literal["features", "parameters"] = "features"
    heads: Literal["unweighted", "weighted"] = "unweighted"

    def due(self) -> bool:
        """Whether it looks at gradients in the step that comes; else it weighs them by what is known."""
        return True

    def begin(self, step: Step) -> None:
        """Take note of a training step whose backward comes."""

    def known(self) -> Tensor:
        """Return what to weigh the tasks' gradients by, `[T]`, in a step in which no Gramian is due."""
        return torch.ones_like(self.base_weight)

    @abstractmethod
    def take_gramian(self, gramian: Tensor, step: Step) -> Tensor | None:
        """Return what to weigh the tasks' gradients by, `[T]`, from their Gramian `[T, T]`; None is their sum.

        Args:
            gramian: that of all processes.
            step: the numbers of the step.
        """


def solved(
    solver: Callable[[Tensor, Tensor, Tensor], Tensor], gramian: Tensor, step: Step, count: Tensor, aside: Tensor | None
) -> Tensor:
    """Return what a solver finds, `[T]`, as if constant terms, where `aside` is 1, were not there; theirs is 1."""
    losses = step.losses.to(gramian)
    if aside is None:
        return solver(gramian, losses, count)
    out = aside > 0
    found = solver(torch.where(out | out[:, None], 0.0, gramian), torch.where(out, 1.0, losses), count)
    return torch.where(out, 1.0, found)


def balancing(weighting: Any) -> BalancingWeighting | None:
    """Return a weighting that looks at gradients, out of what is wrapped around it, as by FSDP1; None for any other.

    Raises:
        RuntimeError: what is wrapped around it trains a copy, as PEFT's `modules_to_save` does.
    """
    while not isinstance(weighting, Weighting):
        weighting = getattr(weighting, "module", None)
        if weighting is None:
            raise RuntimeError(
                "task_weighting should be a weighting: found one of which a library trains a copy; have it wrap the "
                "network and not the module with the tasks, as `self.backbone = get_peft_model(backbone, config)`"
            )
    return weighting if isinstance(weighting, BalancingWeighting) else None
