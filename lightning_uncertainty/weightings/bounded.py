"""Uncertainty weighting whose total is bounded below (Liebel & Körner, 2018)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lightning_uncertainty._tensors import promote
from lightning_uncertainty.weightings._learnt import DEFAULT_MEMORY, LearntWeighting

__all__ = ["BoundedUncertaintyWeighting"]


class BoundedUncertaintyWeighting(LearntWeighting):
    r"""Learn one number per task as in `UncertaintyWeighting`, under a penalty that cannot go negative.

    .. math::  \sum_i b_i \left( \tfrac12 e^{-s_i} L_i + \log(1 + e^{s_i}) \right), \qquad
               e^{s^*} = \frac{L + \sqrt{L^2 + 8 L}}{4}.

    With `c² = e^s` this is the paper's form `L / 2c² + log(1 + c²)`, the same for every likelihood. The total is
    positive, and the weight of a small loss grows with `1 / √(2 L)` instead of `1 / (2 L)`: at `L` = 0.01 it is 6.8,
    where `UncertaintyWeighting` has 50. The price: `c` is no deviation. `c²` nears `L / 2 + 1` for large losses and
    `√(L / 2)` for small ones, so the balance of tasks depends on the units of their labels.

    The gradient of `s` is that of the running mean loss, never steeper than the penalty is at its optimum,

    .. math::  b_i \max \left( \mathrm{sigmoid}(s_i) - \tfrac12 e^{-s_i} \bar L_i, -\mathrm{sigmoid}(s^*_i) \right),

    for the reason that `UncertaintyWeighting` gives.

    Source: Liebel & Körner, "Auxiliary Tasks in Multi-Task Learning", arXiv:1805.06334, 2018, Eq. 3.

    Args:
        start: first `s`, as in `UncertaintyWeighting`; 0.0 is `c = 1`, the paper's choice.
        base_weights: see `Weighting`.
        memory: as in `UncertaintyWeighting`.
        restart: as in `UncertaintyWeighting`.

    Raises:
        ValueError: the memory is below 1 or above a million, or the restart below 1; (when tasks are registered) a name
            is no task, or a number is not finite or negative.

    Example:
        >>> from lightning_uncertainty.likelihoods import Gaussian
        >>> weighting = BoundedUncertaintyWeighting().bind({"depth": Gaussian()})
        >>> weighted = weighting(torch.tensor([0.1]), torch.tensor([True]))
        >>> round(weighted.log_variances.exp().item(), 4), round(weighted.weights.item(), 4)
        (0.25, 2.0)
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
        weights = scale * torch.exp(-s) / 2
        return (weights * losses).sum() + scale.dot(softplus(s)), weights.detach()

    def slope(self, s: Tensor, weights: Tensor, mean_loss: Tensor, steps: Tensor, seen: Tensor) -> Tensor:
        slope = self.base_weight * torch.sigmoid(s) - weights * mean_loss
        return torch.maximum(slope, -self.base_weight * torch.sigmoid(self.optimum(mean_loss)))

    def loss_at(self, s: Tensor) -> Tensor:
        return 2 * torch.exp(s) * torch.sigmoid(s)

    def optimum(self, losses: Tensor, steps: Tensor | None = None) -> Tensor:
        root = promote(losses).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
        return torch.log(root * (root + (root.square() + 8).sqrt()) / 4)

    def meanings(self) -> dict[str, str]:
        return dict.fromkeys(self.tasks, "c of Liebel & Körner: no deviation [-]")
