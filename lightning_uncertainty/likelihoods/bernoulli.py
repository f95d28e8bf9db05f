"""Binary cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_uncertainty._tensors import is_number, promote
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
        pos_weight: factor of the positive labels' error, as in `torch.nn.BCEWithLogitsLoss`: a number, or one for each
            channel of outputs `[B, D, ...]`, as a sequence or a tensor.
        focal: see `Categorical`; with a label y between 0 and 1, the wrong class has the probability
            `y (1 - p) + (1 - y) p`.

    Raises:
        ValueError: pos_weight is not positive, or focal is negative or not finite.

    Example:
        >>> total, count = Bernoulli().loss(torch.zeros(2, 1), torch.tensor([1.0, 0.0]))
        >>> round((total / count).item(), 4)  # log 2
        0.6931
    """

    pos_weight: float | tuple[float, ...] = 1.0
    focal: float | None = None
    factor: ClassVar[float] = 1.0
    meaning: ClassVar[str] = "√(2·BCE) [-]"
    predictive: ClassVar[Predictive] = "event"

    def __post_init__(self) -> None:
        given: Any = self.pos_weight
        given = given.tolist() if isinstance(given, Tensor) else given
        weights = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        if not weights or not all(is_number(weight) and 0 < weight < inf for weight in weights):
            raise ValueError(f"pos_weight should be positive and finite, one or one a channel: found {given!r}")
        object.__setattr__(self, "pos_weight", tuple(map(float, weights)) if given is not weights[0] else float(given))
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
            error = -self._weight(output) * target * F.logsigmoid(output) - (1 - target) * F.logsigmoid(-output)
        if not self.focal:
            return error
        return power(target * torch.sigmoid(-output) + (1 - target) * torch.sigmoid(output), self.focal) * error

    def _weight(self, output: Tensor) -> Tensor | float:
        if not isinstance(self.pos_weight, tuple):
            return self.pos_weight
        channels = output.shape[1] if output.dim() > 1 else 1
        if len(self.pos_weight) != channels:
            raise ValueError(
                f"pos_weight should be one number, or one for each of {channels} channels: found {len(self.pos_weight)}"
            )
        shape = (-1, *[1] * (output.dim() - 2))
        return torch.tensor(self.pos_weight, dtype=output.dtype, device=output.device).reshape(shape)

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
