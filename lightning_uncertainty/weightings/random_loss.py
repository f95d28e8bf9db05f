"""RLW: weights drawn anew in every step (Lin et al., TMLR 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_uncertainty._tensors import keep_for_backward, normal
from lightning_uncertainty.weightings._base import Weighting
from lightning_uncertainty.weightings._weighted import Weighted

__all__ = ["RandomLossWeighting"]


class RandomLossWeighting(Weighting):
    r"""Weigh the losses by the softmax of numbers drawn anew in every training step.

    .. math::  \sum_i b_i \lambda_i L_i, \qquad \lambda = \operatorname{softmax}(z), \quad z_i \sim \mathcal N(0, 1),

    over the tasks present. There is nothing to learn and nothing to tune: it is the baseline that any other weighting
    should beat. The weights sum to 1 (with base weights 1), as the paper has it, so the gradient is on average `1 / T`
    of the plain sum's: multiply the learning rate of SGD by `T` to compare the two.

    Draws are a function of the seed, the task's name and the number of its steps so far. They are therefore the same on
    every rank and after a resume, and a task's do not change with the order of tasks or when others come and go. In
    evaluation and in `fixed_weighting` every task has its mean weight, `1 / T`.

    Source: Lin et al., "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning", TMLR
    2022.

    Args:
        seed: of the draws, at least 0; fits with one seed have one sequence of weights, whatever torch's seed.
        base_weights: see `Weighting`; 0 also leaves a task out of the softmax.

    Raises:
        ValueError: the seed is no whole number, negative or no int64; (when tasks are registered) see `Weighting`.

    Example:
        >>> from lightning_uncertainty.likelihoods import Gaussian
        >>> weighting = RandomLossWeighting().bind({"depth": Gaussian(), "mass": Gaussian()})
        >>> losses, present = torch.ones(2, requires_grad=True), torch.tensor([True, True])
        >>> [weighting(losses, present).weights for step in range(2)]
        [tensor([0.6052, 0.3948]), tensor([0.1872, 0.8128])]
    """

    takes_normalised = True
    draws: Tensor

    def __init__(self, seed: int = 0, base_weights: Mapping[str, float] | None = None) -> None:
        super().__init__(base_weights, seed=seed)
        if not isinstance(seed, int) or not 0 <= seed < 1 << 63:
            raise ValueError(f"seed should be a whole number in [0, 2^63): found {seed}")
        self.seed = seed

    def make_vectors(self) -> None:
        self.register_buffer("draws", self.vector(torch.int64))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.draws.zero_()

    def weigh(self, losses: Tensor, present: Tensor) -> Weighted:
        counted = present & (self.base_weight > 0)
        powers = counted.to(losses.dtype)
        if self.learning:
            draws = self.draws + counted
            powers = keep_for_backward(powers * normal(self.seed, self.task_ids, draws, dtype=losses.dtype).exp())
            self.draws.copy_(draws)
        weights = self.base_weight * powers / powers.sum().clamp(min=torch.finfo(torch.float32).tiny)
        return Weighted((weights * losses).sum(), weights, None)
