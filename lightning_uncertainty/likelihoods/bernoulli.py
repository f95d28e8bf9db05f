"""Binary cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_uncertainty._tensors import promote
from lightning_uncertainty.likelihoods._base import Predictive
from lightning_uncertainty.likelihoods._elementwise import Elementwise
from lightning_uncertainty.likelihoods._focal import check_focal, power
from lightning_uncertainty.likelihoods._labels import range_of
from lightning_uncertainty.likelihoods.prediction import Prediction, binary

__all__ = ["Bernoulli"]


@dataclass(frozen=True)
class Bernoulli(Elementwise, name="bernoulli"):
    """Binary cross-entropy of logits, averaged over every label entry; Kendall et al., CVPR 2018, Eq. 8 to 10.

    `J = e^{-s} L + ½ s`: the two-class case of `Categorical` with logits `(0, f)`. `e^s` at the optimum is `2 L`, the
    mean deviance, a dispersion without unit. For several labels an output `[B, D]` counts `B · D` scalars.

    Args:
        pos_weight: factor of the positive labels' error, as in `torch.nn.BCEWithLogitsLoss`.
        focal: see `Categorical`; with a label y between 0 and 1, the wrong class has the probability
            `y (1 - p) + (1 - y) p`.

    Raises:
        ValueError: pos_weight is not positive, or focal is negative or not finite.

    Example:
        >>> total, count = Bernoulli().loss(torch.zeros(2, 1), torch.tensor([1.0, 0.0]))
        >>> round((total / count).item(), 4)  # log 2
        0.6931
    """

    pos_weight: float = 1.0
    focal: float | None = None
    factor: ClassVar[float] = 1.0
    meaning: ClassVar[str] = "√(2·BCE) [-]"
    predictive: ClassVar[Predictive] = "event"

    def __post_init__(self) -> None:
        if not self.pos_weight > 0:
            raise ValueError(f"pos_weight should be positive, found {self.pos_weight}")
        check_focal(self, self.focal)

    def check_labels(self, target: Tensor) -> None:
        if ((target < 0) | (target > 1)).any():
            raise ValueError(
                f"labels of a {self.name} task should lie in [0, 1]: found {range_of(target)}; mark missing ones by "
                "NaN or a mask"
            )

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        if self.pos_weight == 1.0:
            error = F.binary_cross_entropy_with_logits(output, target, reduction="none")
        else:
            error = -self.pos_weight * target * F.logsigmoid(output) - (1 - target) * F.logsigmoid(-output)
        if not self.focal:
            return error
        return power(target * torch.sigmoid(-output) + (1 - target) * torch.sigmoid(output), self.focal) * error

    def mean(self, output: Tensor) -> Tensor:
        return output.sigmoid()

    def predicted(self, outputs: Tensor, log_variance: Tensor, correction: Tensor) -> Prediction:
        """Return probabilities and entropies in nats, in which the dispersion `e^s` has no part."""
        return binary((promote(outputs) / correction).sigmoid())

    def observed(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        probability, label = super().observed(output, target, mask)
        return probability, label.round().long()

    def aligned(
        self, output: Tensor, target: Tensor | None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        probability, label, there = super().aligned(output, target, mask)
        return probability, label.nan_to_num().round().long(), there
