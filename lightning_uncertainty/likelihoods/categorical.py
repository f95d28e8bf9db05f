"""Cross-entropy of classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_uncertainty._tensors import promote, reads_values
from lightning_uncertainty.likelihoods._base import Likelihood, Predictive
from lightning_uncertainty.likelihoods._focal import check_focal, power
from lightning_uncertainty.likelihoods._labels import Counted, fit_mask, range_of, sum_and_count
from lightning_uncertainty.likelihoods.prediction import Prediction, classification

__all__ = ["Categorical", "CategoricalHalf", "ClassLabels"]


@dataclass(frozen=True)
class ClassLabels(Likelihood):
    """Cross-entropy of logits `[B, C, ...]`, made of a head's output, and class indices `[B, ...]`.

    Args:
        ignore_index: label of a missing class.
        class_weights: a factor for each class; the mean then divides by the sum of weights, as torch's own does.
        focal: see `Categorical`.
    """

    ignore_index: int = -100
    class_weights: tuple[float, ...] | None = None
    focal: float | None = None
    predictive: ClassVar[Predictive] = "classes"

    def __post_init__(self) -> None:
        check_focal(self, self.focal)
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", tuple(float(w) for w in self.class_weights))
            if not all(w >= 0 for w in self.class_weights or ()):
                raise ValueError(f"class weights should be at least 0, found {self.class_weights}")

    def logits(self, output: Tensor) -> Tensor:
        """Turn the head's output into logits, float32 or wider."""
        return promote(output)

    def loss(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits = self.logits(output)
        mask = self._observed_mask(logits, target, mask)
        classes = logits.shape[1]
        label = torch.where(mask, target, 0).long()
        in_range = (label >= 0) & (label < classes)
        if reads_values(label) and not in_range.all():
            raise ValueError(
                f"labels of a {self.name} task with {classes} outputs should lie in [0, {classes - 1}]: found "
                f"{range_of(label)}; a missing label is ignore_index={self.ignore_index}"
            )
        weights = None
        if self.class_weights is not None:
            if len(self.class_weights) != classes:
                raise ValueError(
                    f"class_weights should have one weight for each of {classes} outputs, found "
                    f"{len(self.class_weights)}"
                )
            make = _tensor_of if torch.compiler.is_compiling() else _cached_tensor_of
            weights = make(self.class_weights, logits.device)
        label = torch.where(in_range, label, 0)  # a label out of range would abort a CUDA process
        error = F.cross_entropy(logits, label, reduction="none")
        if self.focal:
            error = power(-torch.expm1(-error), self.focal) * error
        error = torch.where(in_range, error, torch.nan)  # ... it becomes a NaN loss instead, which is reported
        if weights is None:
            return sum_and_count(error, mask)
        weight = torch.where(mask, weights[label], 0.0)
        pair = (weight * torch.where(mask, error, 0.0)).sum(), weight.sum()
        return Counted(pair, mask.sum())

    def observed(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits = self.logits(output)
        mask = self._observed_mask(logits, target, mask)
        return logits.softmax(1).movedim(1, -1)[mask], target[mask].long()

    def predicted(self, outputs: Tensor, log_variance: Tensor, correction: Tensor) -> Prediction:
        """Return probabilities and entropies in nats, in which the dispersion `e^s` has no part."""
        return classification((promote(outputs) / correction).softmax(2))

    def paired(self, prediction: Prediction, target: Tensor, mask: Tensor | None = None) -> tuple[Prediction, Tensor]:
        mask = self._observed_mask(prediction.mean, target, mask)
        mean = prediction.mean.movedim(1, -1)[mask]
        return Prediction(mean, *(part[mask] for part in prediction[1:])), target[mask].long()

    def outputs_of(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mask = self._observed_mask(output, target, mask)
        return output.movedim(1, -1)[mask], target[mask].long()

    def _observed_mask(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        if target.is_floating_point() or target.is_complex() or target.dtype is torch.bool:
            raise ValueError(
                f"labels of a {self.name} task should be integer class indices: found {target.dtype}; a missing label "
                f"is ignore_index={self.ignore_index}"
            )
        if logits.dim() < 2 or logits.shape[:1] + logits.shape[2:] != target.shape:
            raise ValueError(
                f"a {self.name} task should have logits [B, C, ...] and labels [B, ...]: found logits "
                f"{list(logits.shape)} and labels {list(target.shape)}"
            )
        observed = target.long() != self.ignore_index  # in uint8, -100 would be class 156
        return observed if mask is None else observed & fit_mask(mask, target.shape)


@dataclass(frozen=True)
class Categorical(ClassLabels, name="categorical"):
    """Cross-entropy of logits `[B, C, ...]`; Kendall et al., CVPR 2018, Eq. 10.

    `J = e^{-s} L + ½ s` with `L` the mean cross-entropy. `e^s` at the optimum is `2 L`, the mean deviance: a dispersion
    without unit, not a temperature.

    Args:
        ignore_index: label of a missing class.
        class_weights: a factor for each class; the mean then divides by the sum of weights, as torch's own does.
        focal: exponent γ of example-level focal loss, `(1 - p)^γ CE`, with `p` the probability of the label's class:
            what is classified well counts less. None and 0 are plain cross-entropy. The loss is then no
            log-likelihood, and `e^s` a scale. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, Eq. 4.

    Raises:
        ValueError: a class weight is negative, or focal is negative or not finite.

    Example:
        >>> total, count = Categorical().loss(torch.zeros(2, 3), torch.tensor([1, -100]))
        >>> round(total.item(), 4), count.item()  # log 3, one label
        (1.0986, 1.0)
    """

    factor: ClassVar[float] = 1.0
    meaning: ClassVar[str] = "√(2·CE) [-]"


@dataclass(frozen=True)
class CategoricalHalf(ClassLabels, name="categorical_half"):
    """Cross-entropy under `1/(2σ²)`, as many public codes have it.

    `J = ½ e^{-s} L + ½ s`. Its optimum is `e^s = L` in place of `2 L`, and the effective weight there `1 / (2 L)` is
    that of `Categorical`: only σ differs, by √2.

    Args:
        ignore_index: label of a missing class.
        class_weights: a factor for each class; the mean then divides by the sum of weights, as torch's own does.
        focal: see `Categorical`.

    Example:
        >>> from math import log
        >>> round(Categorical().optimum(0.7) - CategoricalHalf().optimum(0.7), 4) == round(log(2), 4)
        True
    """

    factor: ClassVar[float] = 0.5
    meaning: ClassVar[str] = "√CE [-]"


def _tensor_of(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device=device)


_cached_tensor_of = lru_cache(maxsize=64)(_tensor_of)  # one copy to the device, not one a step
