"""Uncertainty weighting in closed form: nothing to learn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_uncertainty._tensors import is_number, keep_for_backward
from lightning_uncertainty.likelihoods import optimal_log_variance
from lightning_uncertainty.weightings._running_means import RunningMeans
from lightning_uncertainty.weightings._weighted import Weighted

__all__ = ["DEFAULT_DECAY", "AnalyticUncertaintyWeighting"]

DEFAULT_DECAY = 0.98
"""Remembers about 50 training steps."""


class AnalyticUncertaintyWeighting(RunningMeans):
    r"""Set every log-variance to the optimum of its task's running mean loss.

    .. math::  s_i = \log(a_i c_i \bar L_i / r_i) / a_i, \qquad
               \bar L \leftarrow \bar L + \frac{1 - d}{1 - d^n} (L - \bar L),

    `n` counting the task's steps: a plain mean at first, an exponential one with decay `d` later. There is no
    parameter, no learning rate and no weight decay, and σ follows the residuals within about `1 / (1 - d)` steps. The
    total is that of `UncertaintyWeighting` with `s` held constant, so that its value is comparable. It is the loss that
    is averaged, not its log, which would bias σ downwards.

    Source: the stationary point of Kendall, Gal & Cipolla, CVPR 2018, Eq. 7; per-step analytic weights are discussed by
    Kirchdorfer et al., "Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning", GCPR 2024.

    Args:
        decay: `d` in [0, 1); 0 follows every batch, `DEFAULT_DECAY` about 50 steps.
        base_weights: see `Weighting`.

    Raises:
        ValueError: the decay is outside [0, 1).

    Example:
        >>> from lightning_uncertainty.likelihoods import Gaussian
        >>> weighting = AnalyticUncertaintyWeighting().bind({"depth": Gaussian()})
        >>> loss = torch.tensor([9.0], requires_grad=True)
        >>> round(weighting(loss, torch.tensor([True])).log_variances.div(2).exp().item(), 4)  # σ = RMSE
        3.0
    """

    takes_normalised = True
    takes_constant = True
    log_variance: Tensor

    def __init__(self, decay: float = DEFAULT_DECAY, base_weights: Mapping[str, float] | None = None) -> None:
        if not (is_number(decay) and 0 <= decay < 1):
            raise ValueError(f"decay should lie in [0, 1): found {decay!r}")
        super().__init__(1 - decay, base_weights, decay=decay)
        self.decay = decay

    def make_vectors(self) -> None:
        super().make_vectors()
        self.register_buffer("mean_loss", self.vector())
        self.register_buffer("steps", self.vector())
        self.register_buffer("log_variance", self.vector())

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.mean_loss.zero_()
        self.steps.zero_()

    def weigh(self, losses: Tensor, present: Tensor) -> Weighted:
        if self.all_heard(losses, present, below=math.inf):
            return self._weigh_all(losses)
        mean_loss, steps = self._updated(losses.detach(), present)
        if self.learning:
            self.mean_loss.copy_(mean_loss)
            self.steps.copy_(steps)
        optimum = self.optimum(mean_loss)
        assert optimum is not None
        started = steps > 0
        s = keep_for_backward(torch.where(started, optimum, 0.0))
        total, weights = self.balanced_objective(s, losses, present)
        return Weighted(total, weights, torch.where(started, optimum, torch.nan))

    def _weigh_all(self, losses: Tensor) -> Weighted:
        """Return what `weigh` does in an ordinary step."""
        own: dict[str, Any] = self._buffers
        s = optimal_log_variance(self.hear_all(losses.detach()), own["exponent"], own["log_ratio"])
        weights = self.balanced_weights(s)
        total = torch.dot(torch.cat([losses, s]), torch.cat([weights, own["base_penalty"]]))
        return Weighted(total, weights, s)

    def _updated(self, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return running means and step counts with this batch; evaluation changes only tasks that never trained."""
        usable = self.usable(losses, present)
        if not self.learning:
            usable = usable & (self.steps == 0)
        steps = self.steps + usable
        rate = self.rates(steps.clamp(min=1))
        newest = torch.where(usable, losses, self.mean_loss)
        # `mean + rate · (newest - mean)` would lose a loss that has fallen by orders of magnitude to rounding
        return torch.lerp(self.mean_loss.to(newest), newest, rate.to(newest)), steps
