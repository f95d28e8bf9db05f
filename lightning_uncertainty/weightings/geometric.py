"""GLS: the geometric mean of the losses (Chennupati et al., CVPR Workshops 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_uncertainty.weightings._base import Weighting
from lightning_uncertainty.weightings._weighted import Weighted

__all__ = ["GeometricLossWeighting"]

_TINY = torch.finfo(torch.float32).tiny
_LOG_MOST = math.log(torch.finfo(torch.float32).max) - 1e-4  # whose exponential rounds to no infinity


class GeometricLossWeighting(Weighting):
    r"""Minimise the geometric mean of the losses.

    .. math::  \Big( \prod_i L_i \Big)^{1/T} = e^{\overline{\log L}}, \qquad
               w_i = \frac{\partial}{\partial L_i} = \frac{1}{T L_i} \Big( \prod_j L_j \Big)^{1/T},

    over the `T` tasks present. The direction is that of `UncertaintyWeighting` at its optimum, each gradient over its
    own loss: units of labels do not matter to it, and there is nothing to learn. Its length follows the mean: losses
    that are all halved have gradients half as long. One loss near zero takes the length from all others.

    It is computed in log space, so that no product overflows; a zero loss counts as float32's tiny, and no weight is
    beyond what float32 holds.

    Source: Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task
    Learning", CVPR Workshops 2019.

    Args:
        base_weights: of the mean, by task name, others 1: the exponents become `b / Σ b`, and so do the factors of the
            weights in place of `1 / T`. 0 leaves a task out.

    Raises:
        ValueError: (when tasks are registered) see `Weighting`.

    Example:
        >>> from lightning_uncertainty.likelihoods import Gaussian
        >>> weighting = GeometricLossWeighting().bind({"depth": Gaussian(), "mass": Gaussian()})
        >>> total, weights, _ = weighting(torch.tensor([1.0, 16.0]), torch.tensor([True, True]))
        >>> round(total.item(), 4), weights
        (4.0, tensor([2.0000, 0.1250]))
    """

    def __init__(self, base_weights: Mapping[str, float] | None = None) -> None:
        super().__init__(base_weights)

    def weigh(self, losses: Tensor, present: Tensor) -> Weighted:
        counted = present & (self.base_weight > 0)
        logs = torch.where(counted, losses.detach(), 1.0).clamp(min=_TINY).log()
        exponents = torch.where(counted, self.base_weight, 0.0)
        exponents = exponents / exponents.sum().clamp(min=_TINY)
        mean = exponents.dot(logs.to(exponents))
        weights = exponents * torch.exp((mean - logs).clamp(max=_LOG_MOST))
        # the mean's value with the weights as its gradient, which automatic differentiation has at no zero
        total = counted.any() * mean.clamp(max=_LOG_MOST).exp() + (weights * (losses - losses.detach())).sum()
        return Weighted(total, weights, None)
