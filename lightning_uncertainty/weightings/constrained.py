"""Uncertainty weighting with the mean of all log-variances fixed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_uncertainty._tensors import is_number, promote
from lightning_uncertainty.likelihoods import optimal_log_variance
from lightning_uncertainty.weightings._learnt import DEFAULT_MEMORY, LearntWeighting

__all__ = ["ConstrainedUncertaintyWeighting"]


class ConstrainedUncertaintyWeighting(LearntWeighting):
    r"""Learn the ratios of the tasks' σ and keep their product: the mean of `s` over the tasks present is `m`.

    .. math::  \sum_i b_i c_i e^{-a_i s_i} L_i, \quad s_i = \text{raw}_i - \overline{\text{raw}} + m, \qquad
               s^*_i = \frac{\log(a_i b_i c_i L_i) - \log\lambda}{a_i},

    with `λ` such that the mean is `m`. There is no penalty to pay for a large σ, as none can grow but at the cost of
    others: the total is positive, all weights cannot rise together, and where all `a` are alike it is, at its optimum,
    the geometric mean of the losses (times `T c e^{-a m}`). With one task, its weight is constant.

    The gradient of `s` is that at the running mean losses, in which a task pulls at most twice as hard as it would at
    the optimum,

    .. math::  -\lambda \min \left( e^{a_i (s^*_i - s_i)}, 2 \right) + \text{the mean of all},

    with `s*` and `λ` those of the tasks present, for the reason that `UncertaintyWeighting` gives. It has the size of
    the losses: give it to Adam, or choose its learning rate with care.

    σ is relative: for tasks of one exponent `a` and one base weight, the ratio of two σ is that of their deviations;
    their size says nothing about the data.

    Source: Kendall, Gal & Cipolla, CVPR 2018, Eq. 7, under a constraint in place of its log-terms; at its optimum it is
    the geometric loss of Chennupati et al., "MultiNet++", CVPR Workshops 2019.

    Args:
        mean_log_variance: `m`.
        start: first `s` before the mean is taken out, as in `UncertaintyWeighting`.
        base_weights: see `Weighting`.
        memory: as in `UncertaintyWeighting`.
        restart: as in `UncertaintyWeighting`.

    Raises:
        ValueError: the mean is not finite, the memory is below 1 or above a million, or the restart below 1; (when
            tasks are registered) a name is no task, or a number is not finite or negative.

    Example:
        >>> from lightning_uncertainty.likelihoods import Gaussian
        >>> weighting = ConstrainedUncertaintyWeighting().bind({"depth": Gaussian(), "mass": Gaussian()})
        >>> weighted = weighting(torch.tensor([1.0, 16.0]), torch.tensor([True, True]))
        >>> weighted.log_variances.exp(), weighted.total.item()  # σ as 1 : 4
        (tensor([0.2500, 4.0000]), 4.0)
    """

    def __init__(
        self,
        mean_log_variance: float = 0.0,
        start: float | Mapping[str, float] | None = None,
        base_weights: Mapping[str, float] | None = None,
        *,
        memory: float | None = DEFAULT_MEMORY,
        restart: int | None = None,
    ) -> None:
        super().__init__(start, base_weights, memory, restart, mean_log_variance=mean_log_variance)
        if not is_number(mean_log_variance) or not abs(mean_log_variance) <= torch.finfo(torch.float32).max:
            raise ValueError(f"mean_log_variance should be finite: found {mean_log_variance!r}")
        self.mean_log_variance = mean_log_variance

    def shaped(self, raw: Tensor, present: Tensor) -> Tensor:
        counted = present * (self.base_weight > 0)
        return raw - (counted * raw).sum() / counted.sum().clamp(min=1) + self.mean_log_variance

    def first_raw(self, mean_loss: Tensor, steps: Tensor) -> Tensor:
        return optimal_log_variance(mean_loss, self.exponent, self.log_ratio)

    def objective(self, s: Tensor, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        s = torch.where(present, s, 0.0)  # beside the mean of others an absent one may be beyond what exp can hold
        weights = torch.exp(self.log_factor - self.exponent * s) * present
        return (weights * losses).sum(), weights.detach()

    def slope(self, s: Tensor, weights: Tensor, mean_loss: Tensor, steps: Tensor, seen: Tensor) -> Tensor:
        _, log_multiplier = self._solved(mean_loss, self.usable(mean_loss, seen))
        return -torch.minimum(self.exponent * weights * mean_loss, 2 * torch.exp(log_multiplier))

    def running_optimum(self, mean_loss: Tensor, steps: Tensor, seen: Tensor) -> Tensor:
        return self.optimum(mean_loss, seen)  # the tasks present, over which s has its mean

    def loss_at(self, s: Tensor) -> Tensor:
        return torch.full_like(s, torch.nan)  # of all levels of the losses

    def optimum(self, losses: Tensor, steps: Tensor | None = None) -> Tensor:
        losses = promote(losses)
        counted = self.usable(losses, torch.ones_like(losses) if steps is None else steps > 0)
        free, log_multiplier = self._solved(losses, counted)
        return free - log_multiplier / self.exponent

    def _solved(self, losses: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Return `log(a b c L) / a`, `[T]`, and `log λ`, of the tasks counted."""
        free = optimal_log_variance(losses, self.exponent, self.exponent.log() + self.log_factor)
        excess = torch.where(counted, free - self.mean_log_variance, 0.0).sum()
        return free, excess / (counted / self.exponent).sum().clamp(min=torch.finfo(torch.float32).tiny)

    def meanings(self) -> dict[str, str]:
        return {task: f"relative: only ratios count; {meaning}" for task, meaning in self._meanings.items()}
