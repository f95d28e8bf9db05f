"""IMTL-L: losses learnt to be of one size (Liu et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_uncertainty._tensors import promote
from lightning_uncertainty.likelihoods import optimal_log_variance
from lightning_uncertainty.weightings._learnt import DEFAULT_MEMORY, LearntWeighting

__all__ = ["ImpartialLossWeighting"]


class ImpartialLossWeighting(LearntWeighting):
    r"""Learn one factor per task that brings all losses to one size, whatever the likelihood.

    .. math::  \sum_i b_i \left( e^{-s_i} L_i + s_i \right), \qquad s^* = \log L.

    It is the paper's `e^s L - s` with `s → -s`, so that `s` is a log-variance as everywhere here and σ² = `e^s` is the
    scale of the loss: at the optimum the loss itself, and every weighted loss is 1. `UncertaintyWeighting` has the same
    weights at its optimum, but for a factor of the likelihood; there σ means something of the data, here nothing.

    The gradient of `s` is `b max(1 - e^{s* - s}, -1)`, with `s*` of the running mean loss, for the reason that
    `UncertaintyWeighting` gives.

    Source: Liu et al., "Towards Impartial Multi-Task Learning", ICLR 2021 (IMTL-L). The whole of IMTL is this
    within `GradientBalancing("imtl_g", ...)`.

    Args:
        start: first `s`, as in `UncertaintyWeighting`; 0.0 is the paper's, from which losses in large or small units
            are long under way.
        base_weights: see `Weighting`.
        memory: as in `UncertaintyWeighting`.
        restart: as in `UncertaintyWeighting`.

    Raises:
        ValueError: the memory is below 1 or above a million, or the restart below 1; (when tasks are registered) a name
            is no task, or a number is not finite or negative.

    Example:
        >>> from lightning_uncertainty.likelihoods import Gaussian
        >>> weighting = ImpartialLossWeighting(start=0.0).bind({"depth": Gaussian()})
        >>> weighted = weighting(torch.tensor([4.0]), torch.tensor([True]))
        >>> weighted.total.item(), weighted.weights.item(), weighting.optimum(torch.tensor([4.0])).exp().item()
        (4.0, 1.0, 4.0)
    """

    def __init__(
        self,
        start: float | Mapping[str, float] | None = None,
        base_weights: Mapping[str, float] | None = None,
        *,
        memory: float | None = DEFAULT_MEMORY,
        restart: int | None = None,
    ) -> None:
        super().__init__(start, base_weights, memory, restart)

    def objective(self, s: Tensor, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.base_weight * present
        weights = scale * torch.exp(-s)
        return (weights * losses).sum() + scale.dot(s), weights.detach()

    def slope(self, s: Tensor, weights: Tensor, mean_loss: Tensor, steps: Tensor, seen: Tensor) -> Tensor:
        return torch.maximum(self.base_weight - weights * mean_loss, -self.base_weight)

    def loss_at(self, s: Tensor) -> Tensor:
        return torch.exp(s)

    def optimum(self, losses: Tensor, steps: Tensor | None = None) -> Tensor:
        losses = promote(losses)
        return optimal_log_variance(losses, torch.ones_like(losses), torch.zeros_like(losses))

    def meanings(self) -> dict[str, str]:
        return dict.fromkeys(self.tasks, "√loss: σ² is the loss's scale [-]")
