"""STCH: a smooth maximum of the losses (Lin et al., ICML 2024)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_uncertainty._tensors import by_name, is_number, keep_for_backward
from lightning_uncertainty.weightings._by_epoch import EpochWeighting
from lightning_uncertainty.weightings._named import named_vector
from lightning_uncertainty.weightings._weighted import Weighted

__all__ = ["SmoothTchebycheff"]

_TINY, _HUGE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
_LEAST = 1e-20  # is added to what a logarithm is taken of, as published


class SmoothTchebycheff(EpochWeighting):
    r"""Minimise a smooth maximum: the task that is worst off has the most weight, the others some.

    .. math::  T \mu \log \sum_i \exp\!\Big( \frac{\lambda_i}{\mu} \log \frac{L_i}{n_i} \Big), \qquad
               w_i = \frac{T \lambda_i\, p_i}{L_i}, \qquad
               p = \operatorname{softmax}\!\Big( \frac{\lambda}{\mu} \log \frac{L}{n} \Big),

    over the `T` tasks present, with the nadir `n`: a task's mean loss in epoch `nadir_epoch`. Until that epoch's end
    the total is :math:`\sum_i \lambda_i \log L_i`, of weights `λ / L`. This is what the paper's code does, and it does
    not depend on units. At `μ` = 1, its default, and `λ` = 1 the weights of the tasks keep the ratios of `1 / n`, so
    that there is no more balancing; a smaller `μ` is nearer to the maximum.

    With `nadir_epoch=None` it is the formula of the paper, of the losses as they are, which should then be of one size,

    .. math::  \mu \log \sum_i \exp\!\Big( \frac{\lambda_i (L_i - z_i)}{\mu} \Big), \qquad
               w = \lambda \operatorname{softmax}\!\Big( \frac{\lambda (L - z)}{\mu} \Big).

    A task that had no labels in the epoch of the nadir takes its own in the next epoch in which it has some. Epochs are
    the Trainer's; without a Trainer all steps are of one. A nadir is kept when the module is fitted anew.

    Source: Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", ICML 2024, and its code.

    Args:
        temperature: `μ`, positive.
        preferences: `λ`, at least 0, by task name, others 1. 0 leaves a task out.
        ideal: `z`, by task name, others 0: the losses that could be reached at best. Of the paper's formula alone.
        nadir_epoch: the epoch, from 0, whose mean losses are the nadir, 4 in the paper's code; None is the paper's
            formula.

    Raises:
        ValueError: the temperature is not positive and finite, the epoch is no whole number or negative, or there is an
            ideal where there is a nadir; (when tasks are registered) a name is no task, or a number is not finite or a
            preference negative.

    Example:
        >>> from lightning_uncertainty.likelihoods import Gaussian
        >>> weighting = SmoothTchebycheff(0.1, nadir_epoch=0).bind({"depth": Gaussian(), "mass": Gaussian()})
        >>> everywhere = torch.tensor([True, True])
        >>> for epoch, losses in enumerate(([1.0, 8.0], [0.5, 4.4])):
        ...     weighting.start_epoch(epoch)
        ...     weights = weighting(torch.tensor(losses, requires_grad=True), everywhere).weights
        >>> weights  # from [1, 1/8] in the first epoch
        tensor([1.1130, 0.3281])
    """

    nadir: Tensor  # 0 before there is one
    preference: Tensor
    ideal: Tensor

    def __init__(
        self,
        temperature: float = 1.0,
        preferences: Mapping[str, float] | None = None,
        ideal: Mapping[str, float] | None = None,
        *,
        nadir_epoch: int | None = 4,
    ) -> None:
        preferences, ideal = by_name(preferences, "preferences"), by_name(ideal, "ideal")
        options = {"preferences": preferences, "ideal": ideal, "nadir_epoch": nadir_epoch}
        super().__init__(None, temperature=temperature, **options)
        if not (is_number(temperature) and 0 < temperature < float("inf")):
            raise ValueError(f"temperature should be positive and finite: found {temperature!r}")
        if nadir_epoch is not None and (not isinstance(nadir_epoch, int) or nadir_epoch < 0):
            raise ValueError(f"nadir_epoch should be a whole number, at least 0, or None: found {nadir_epoch}")
        if ideal and nadir_epoch is not None:
            raise ValueError(
                f"an ideal should stand in the paper's formula, which has no nadir: found nadir_epoch={nadir_epoch}; "
                "give nadir_epoch=None, or no ideal"
            )
        self.temperature, self.nadir_epoch = temperature, nadir_epoch
        self.needs_epoch = nadir_epoch is not None
        self.ranks_sizes = nadir_epoch is None
        self._preferences, self._ideal = preferences, ideal

    @property
    def first_epoch(self) -> int:
        return 0 if self.nadir_epoch is None or bool(self.nadir.any()) else self.nadir_epoch + 1

    def make_vectors(self) -> None:
        self.add_constant("preference", named_vector(self._preferences, self.tasks, 1.0, "preferences", minimum=0.0))
        self.add_constant("ideal", named_vector(self._ideal, self.tasks, 0.0, "ideal"))
        super().make_vectors()
        self.register_buffer("nadir", self.vector())

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.nadir.zero_()

    def end_epoch(self, finished: Tensor, means: Tensor) -> None:
        if self.nadir_epoch is not None:
            due = finished & (self.epoch >= self.nadir_epoch) & (self.nadir == 0)
            self.nadir.copy_(torch.where(due, means, self.nadir))

    def weigh(self, losses: Tensor, present: Tensor) -> Weighted:
        counted, own = present & (self.preference > 0), losses.detach()
        if self.nadir_epoch is None:
            value, weights = self._smooth(self.preference * (own - self.ideal), counted)
            weights = self.preference * weights
        else:
            if self.learning:
                self.count(losses, counted)
            value, weights = self._of_logs(own, counted)
        weights = keep_for_backward(weights)
        # the value, with the weights as its gradient: that of a logarithm is without end at 0
        return Weighted(value + (weights * (losses - own)).sum(), weights, None)

    def _of_logs(self, losses: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and weights: of the smooth maximum of tasks that have a nadir, and of the others' logarithms."""
        nadir = torch.where(self.nadir > 0, self.nadir, 1.0)
        ratios = (losses / nadir + _LEAST).clamp(max=_HUGE)
        terms = self.preference * ratios.log()
        ranked = counted & (self.nadir > 0)
        value, shares = self._smooth(terms, ranked)
        count = ranked.sum()
        shares = torch.where(ranked, count * shares, counted.to(shares))
        weights = self.preference * shares / (ratios * nadir).clamp(min=_TINY)
        return count * value + torch.where(counted & ~ranked, terms, 0.0).sum(), weights.clamp(max=_HUGE)

    def _smooth(self, terms: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smooth maximum of the terms counted, 0 where there are none, and its slopes."""
        greatest = torch.where(counted, terms, -torch.inf).max()
        greatest = torch.where(counted.any(), greatest, 0.0)
        powers = torch.where(counted, torch.exp((terms - greatest) / self.temperature), 0.0)
        total = powers.sum()
        value = greatest + self.temperature * torch.where(counted.any(), total, 1.0).log()
        return value, powers / total.clamp(min=_TINY)
