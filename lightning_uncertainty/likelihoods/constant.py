"""A term whose weight is constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_uncertainty._tensors import promote
from lightning_uncertainty.likelihoods._base import Likelihood
from lightning_uncertainty.likelihoods._labels import fit_mask, sum_and_count
from lightning_uncertainty.likelihoods.prediction import Prediction, regression

__all__ = ["Constant"]


@dataclass(frozen=True)
class Constant(Likelihood, name="constant"):
    """A term beside the tasks, as a KL divergence or a regulariser: `J = L`, which may be negative, and no σ.

    Its weight is its base weight `b`, in every step. It is no task: the balanced loss and `MultiTaskGain` leave it out,
    `GradientBalancing` adds its gradient as it is. Weightings that decide on every weight refuse it.

    Where a task owns its loss (`task_step`), the output is the term itself, a number or one for each element, and there
    are no labels.

    Example:
        >>> Constant().loss(torch.tensor([1.0, -3.0]))
        (tensor(-2.), tensor(2.))
    """

    factor: ClassVar[float] = 1.0
    exponent: ClassVar[float] = 0.0
    penalty: ClassVar[float] = 0.0
    normalised: ClassVar[bool] = True
    constant: ClassVar[bool] = True
    meaning: ClassVar[str] = "none, constant weight"

    def loss(self, output: Tensor, target: Tensor | None = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the sum of the terms and their count; `target` has no part in it."""
        return sum_and_count(output, None if mask is None else fit_mask(mask, output.shape))

    def observed(
        self, output: Tensor, target: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return nothing, as there are no labels."""
        return output.new_zeros(0), output.new_zeros(0)

    def predicted(self, outputs: Tensor, log_variance: Tensor, correction: Tensor) -> Prediction:
        """Return the terms, whose uncertainty nothing states."""
        outputs = promote(outputs)
        return regression(outputs, torch.full_like(outputs, torch.nan))
