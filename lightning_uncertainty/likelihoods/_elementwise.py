"""What likelihoods of one number for each label have in common."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lightning_uncertainty._tensors import promote, reads_values
from lightning_uncertainty.likelihoods._base import Likelihood
from lightning_uncertainty.likelihoods._labels import align, align_whole, sum_and_count
from lightning_uncertainty.likelihoods.prediction import Prediction, regression

__all__ = ["Elementwise"]


class Elementwise(Likelihood):
    """One error per output scalar; a NaN label is missing."""

    @abstractmethod
    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """Elementwise residual loss of finite labels, shape of both."""

    def mean(self, output: Tensor) -> Tensor:
        """Turn the head's output into a prediction in label space."""
        return output

    def variance(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Return the variance of a label, from its mean and `e^s`; NaN where the likelihood states none."""
        return torch.full_like(mean, torch.nan)

    def predicted(self, outputs: Tensor, log_variance: Tensor, correction: Tensor) -> Prediction:
        means = self.mean(promote(outputs))
        variances = self.variance(means, log_variance.exp()) * correction.square()
        return regression(means, variances.to(means))

    def check_labels(self, target: Tensor) -> None:
        """Raise ValueError where a label is out of range (eager CPU)."""

    def loss(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, target, mask = align(self.name, output, target, mask)
        finite_target = torch.where(mask, target, 0.0)
        if reads_values(target):
            self.check_labels(finite_target)
        return sum_and_count(self.error(output, finite_target), mask)

    def observed(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, target, mask = align(self.name, output, target, mask)
        return self.mean(output)[mask], target[mask]

    def aligned(
        self, output: Tensor, target: Tensor | None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        output, target, there = align_whole(self.name, output, target, mask)
        return self.mean(output), target, there
