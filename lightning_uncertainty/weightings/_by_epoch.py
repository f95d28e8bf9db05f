"""What all weightings that compare epochs have in common."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lightning_uncertainty.weightings._base import Weighting

__all__ = ["EpochWeighting"]


class EpochWeighting(Weighting):
    """Keeps every task's mean loss in the epoch that runs; a method says what becomes of it at the epoch's end.

    All of it is in buffers, so that a fit resumed in the middle of an epoch goes on counting. A task that had no labels
    in a whole epoch has no mean of it. A fit anew, whose first epoch is 0 again, begins another epoch.
    """

    needs_epoch = True
    epoch: Tensor  # that the means are of, -1 before the first
    mean_loss: Tensor
    steps: Tensor

    _told: int | None = None  # what `epoch` holds, where that is known without a look

    @abstractmethod
    def end_epoch(self, finished: Tensor, means: Tensor) -> None:
        """Take the mean losses `[T]` of the epoch `self.epoch`, where tasks had labels in it."""

    def make_vectors(self) -> None:
        self.register_buffer("epoch", self.vector())
        self.register_buffer("mean_loss", self.vector())
        self.register_buffer("steps", self.vector())

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.epoch.fill_(-1)
        self.mean_loss.zero_()
        self.steps.zero_()
        self._told = None

    @torch.no_grad()
    def start_epoch(self, epoch: int) -> None:
        if epoch == self._told:
            return
        over = self.epoch != epoch
        self.end_epoch(over & (self.steps > 0), self.mean_loss.clone())
        self.mean_loss.masked_fill_(over, 0.0)
        self.steps.masked_fill_(over, 0.0)
        self.epoch.fill_(epoch)
        self._told = epoch

    def count(self, losses: Tensor, counted: Tensor) -> None:
        """Let a training step's losses count among the epoch's, where they are finite."""
        losses = losses.detach()
        counted = counted & losses.isfinite()
        self.steps.add_(counted)
        newest = torch.where(counted, losses, self.mean_loss)
        self.mean_loss.copy_(torch.lerp(self.mean_loss.to(newest), newest, 1 / self.steps.to(newest).clamp(min=1)))

    def _load_from_state_dict(self, state_dict: dict[str, object], prefix: str, *args: object) -> None:
        self._told = None  # the checkpoint decides
        super()._load_from_state_dict(state_dict, prefix, *args)
