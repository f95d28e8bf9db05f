"""UW-SO: a softmax over inverse losses (Kirchdorfer et al., GCPR 2024)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_uncertainty._tensors import is_number
from lightning_uncertainty.weightings._base import Weighting
from lightning_uncertainty.weightings._weighted import Weighted

__all__ = ["SoftOptimalUncertaintyWeighting"]


class SoftOptimalUncertaintyWeighting(Weighting):
    r"""Weigh each loss by the softmax of its own inverse, the weight that `UncertaintyWeighting` has at its optimum.

    .. math::  \sum_i b_i \omega_i L_i, \qquad
               \omega_i = \frac{\exp(1 / (L_i T))}{\sum_j \exp(1 / (L_j T))},

    over the tasks present, the weights held constant in the gradient. There is nothing to learn and no state: the
    weights sum to 1 (with base weights 1) and follow every batch. A high temperature weighs all tasks alike, a low one
    gives everything to the smallest loss.

    It depends on the units of the labels: at temperature 1, a loss 100 times smaller takes all the weight. Bring the
    losses to one size first, and search the temperature; the paper tries 5 to 7 values.

    Source: Kirchdorfer et al., "Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning", GCPR 2024, Eq. 4
    (UW-SO).

    Args:
        temperature: `T`, positive.
        base_weights: see `Weighting`; 0 also leaves a task out of the softmax.

    Raises:
        ValueError: the temperature is not positive and finite; (when tasks are registered) see `Weighting`.

    Example:
        >>> from lightning_uncertainty.likelihoods import Gaussian
        >>> weighting = SoftOptimalUncertaintyWeighting(temperature=5.0).bind({"depth": Gaussian(), "mass": Gaussian()})
        >>> weighting(torch.tensor([0.5, 2.0]), torch.tensor([True, True])).weights
        tensor([0.5744, 0.4256])
    """

    ranks_sizes = True

    def __init__(self, temperature: float = 1.0, base_weights: Mapping[str, float] | None = None) -> None:
        super().__init__(base_weights, temperature=temperature)
        if not (is_number(temperature) and 0 < temperature < float("inf")):
            raise ValueError(f"temperature should be positive and finite: found {temperature!r}")
        self.temperature = temperature

    def weigh(self, losses: Tensor, present: Tensor) -> Weighted:
        inverse = (1 / (losses.detach() * self.temperature)).clamp(max=torch.finfo(torch.float32).max)
        counted = present * (self.base_weight > 0)
        # as softmax does, less the greatest; zeros where nothing is present
        greatest = torch.where(counted, inverse, 0.0).max()
        powers = torch.where(counted, torch.exp(inverse - greatest), 0.0)
        weights = self.base_weight * powers / powers.sum().clamp(min=torch.finfo(torch.float32).tiny)
        return Weighted((weights * losses).sum(), weights, None)
