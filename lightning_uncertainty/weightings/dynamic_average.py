"""DWA: weights by the rates at which losses fall from epoch to epoch (Liu et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_uncertainty._tensors import is_number
from lightning_uncertainty.weightings._by_epoch import EpochWeighting
from lightning_uncertainty.weightings._weighted import Weighted

__all__ = ["DynamicWeightAverage"]


class DynamicWeightAverage(EpochWeighting):
    r"""Give more weight to tasks whose mean loss fell less from one epoch to the next.

    .. math::  \sum_i b_i w_i L_i, \qquad w = T \operatorname{softmax}(r / \tau), \qquad
               r_i = \bar L_i^{(e-1)} / \bar L_i^{(e-2)},

    with the means of the two epochs before this one, `T` tasks present, and `τ` the temperature. The weights are 1 in
    the first two epochs, and sum to `T` (with base weights 1) ever after. At `τ` = 2 they stay close to 1: ratios of
    0.5 and 1 have the weights 0.88 and 1.12. As ratios have no unit, nor has the weight: a loss in other units keeps
    its weight, and bring losses to one size first.

    A task without labels in a whole epoch is judged by the latest two epochs in which it had some; until there are two,
    or where the earlier mean is 0, its ratio is 1. Epochs are the Trainer's; without a Trainer all steps are of one.

    Source: Liu, Johns & Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, Eq. 7.

    Args:
        temperature: `τ`, positive; a high one weighs all tasks alike.
        base_weights: see `Weighting`; 0 also leaves a task out of the softmax.

    Raises:
        ValueError: the temperature is not positive and finite; (when tasks are registered) see `Weighting`.

    Example:
        >>> from lightning_uncertainty.likelihoods import Gaussian
        >>> weighting = DynamicWeightAverage().bind({"depth": Gaussian(), "mass": Gaussian()})
        >>> everywhere = torch.tensor([True, True])
        >>> for epoch, losses in enumerate(([8.0, 3.0], [4.0, 3.0], [2.0, 3.0])):
        ...     weighting.start_epoch(epoch)
        ...     weights = weighting(torch.tensor(losses, requires_grad=True), everywhere).weights
        >>> weights
        tensor([0.8756, 1.1244])
    """

    last: Tensor  # mean losses of the latest epoch with labels, 0 before there is one
    before: Tensor  # those of the one before

    def __init__(self, temperature: float = 2.0, base_weights: Mapping[str, float] | None = None) -> None:
        super().__init__(base_weights, temperature=temperature)
        if not (is_number(temperature) and 0 < temperature < float("inf")):
            raise ValueError(f"temperature should be positive and finite: found {temperature!r}")
        self.temperature = temperature

    @property
    def first_epoch(self) -> int:
        return 0 if bool(self.before.any()) else 2

    def make_vectors(self) -> None:
        super().make_vectors()
        self.register_buffer("last", self.vector())
        self.register_buffer("before", self.vector())

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.last.zero_()
        self.before.zero_()

    def end_epoch(self, finished: Tensor, means: Tensor) -> None:
        self.before.copy_(torch.where(finished, self.last, self.before))
        self.last.copy_(torch.where(finished, means, self.last))

    def weigh(self, losses: Tensor, present: Tensor) -> Weighted:
        counted = present & (self.base_weight > 0)
        if self.learning:
            self.count(losses, counted)
        known = self.before > 0
        ratios = torch.where(known, self.last / torch.where(known, self.before, 1.0), 1.0)
        rates = (ratios / self.temperature).clamp(max=torch.finfo(torch.float32).max)
        powers = torch.where(counted, torch.exp(rates - torch.where(counted, rates, 0.0).max()), 0.0)
        share = counted.sum() / powers.sum().clamp(min=torch.finfo(torch.float32).tiny)
        weights = self.base_weight * powers * share
        return Weighted((weights * losses).sum(), weights, None)
