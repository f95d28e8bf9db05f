"""What weightings have in common that follow a running mean of every task's loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_uncertainty._tensors import reads_values
from lightning_uncertainty.weightings._base import Weighting

__all__ = ["RunningMeans"]

_FORGOTTEN = 40.0  # times the memory: e^-40 is left of the first step, which float64 does not tell from nothing


class RunningMeans(Weighting):
    r"""Remembers a mean loss for each task: a plain one at first, an exponential one with decay `d` later.

    .. math::  \bar L \leftarrow \bar L + \frac{1 - d}{1 - d^n} (L - \bar L), \qquad n = \text{the task's steps}.

    In nearly all steps every task has a loss that nothing is wrong with. Such an ordinary step needs no masks, and a
    third of the operations: where values may be read, `all_heard` finds it out, and `hear_all` goes the short way. What
    it needs is taken from `_buffers`, where a module looks for `self.steps` last, for as long as an addition takes.

    Args:
        share: `1 - d`, of the newest loss in a mean over many.
        base_weights: see `Weighting`.
        options: see `Weighting`.
    """

    mean_loss: Tensor
    steps: Tensor
    one: Tensor  # [T]: a number would be made a tensor in every step
    rate: Tensor  # [T], 1 - d

    def __init__(self, share: float, base_weights: Mapping[str, float] | None = None, **options: object) -> None:
        super().__init__(base_weights, **options)
        self._share = share
        self._log_decay = math.log1p(-share) if share < 1 else -math.inf
        self._long = False  # whether all tasks have had so many steps that their number makes no difference

    def make_vectors(self) -> None:
        self._some_without = 0.0 in self._constants["learnable"]
        self.add_constant("one", (1.0 for _ in self.tasks))
        self.add_constant("rate", (self._share for _ in self.tasks))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._long = False

    def _load_from_state_dict(self, state_dict: dict[str, object], prefix: str, *args: object) -> None:
        self._long = False  # the checkpoint decides
        super()._load_from_state_dict(state_dict, prefix, *args)

    def rates(self, steps: Tensor) -> Tensor:
        """Return `(1 - d) / (1 - d^n)` of tasks that had so many steps, `[T]`."""
        return -self._share / torch.expm1(self._log_decay * steps)

    def all_heard(self, losses: Tensor, present: Tensor, below: float) -> bool:
        """Whether this is a step of training in which all tasks have a loss above 0 and below so many running means.

        To know it takes a look at values; elsewhere than on eager CPU the answer is no.
        """
        own: dict[str, Any] = self._buffers
        mean_loss = own["mean_loss"]
        if self._some_without or not (self.learning and reads_values(losses) and losses.dtype is mean_loss.dtype):
            return False
        least, most = torch.aminmax(losses.detach() / mean_loss)
        return least.item() > 0 and most.item() < below and all(present.tolist())

    def hear_all(self, losses: Tensor) -> Tensor:
        """Bring the running means up to date with a loss of every task, `[T]`; return them."""
        own: dict[str, Any] = self._buffers
        steps = own["steps"].add_(own["one"])
        if not self._long and steps.min().item() * self._share > _FORGOTTEN:
            self._long = True
        mean_loss: Tensor = own["mean_loss"].lerp_(losses, own["rate"] if self._long else self.rates(steps))
        return mean_loss

    def balanced_weights(self, s: Tensor) -> Tensor:
        """Return `b c e^{-a s}`, the weights at log-variances `[T]`, with the base weights `b`."""
        own: dict[str, Any] = self._buffers
        return torch.addcmul(own["log_factor"], own["exponent"], s, value=-1).exp()

    def balanced_objective(self, s: Tensor, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of `b (c e^{-a s} L + r s)` over present tasks, and the effective weights `b c e^{-a s}`.

        With `b` the base weights; Kendall, Gal & Cipolla, CVPR 2018, Eq. 7 and 10.
        """
        weights = self.balanced_weights(s)
        terms = torch.addcmul(weights * losses, self.base_penalty, s)
        there = present.to(terms.dtype)
        return terms.dot(there), weights.detach() * there
