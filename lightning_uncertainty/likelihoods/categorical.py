"""Cross-entropy of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_uncertainty._tensors import is_number, promote, reads_values
from lightning_uncertainty.likelihoods._base import Likelihood, Predictive
from lightning_uncertainty.likelihoods._focal import check_focal, power
from lightning_uncertainty.likelihoods._labels import (
    Counted,
    check_tensors,
    fit_mask,
    mend_of_classes,
    range_of,
    sum_and_count,
)
from lightning_uncertainty.likelihoods.prediction import Prediction, classification

__all__ = ["Categorical", "CategoricalHalf", "ClassLabels"]


@dataclass(frozen=True)
class ClassLabels(Likelihood):
    """Cross-entropy of logits `[B, C, ...]`, made of a head's output, and labels: classes or their probabilities.

    Args:
        ignore_index: label of a missing class.
        class_weights: a factor for each class; the mean then divides by the sum of weights, as torch's own does.
        focal: see `Categorical`.
        label_smoothing: see `Categorical`.
    """

    ignore_index: int = -100
    class_weights: tuple[float, ...] | None = None
    focal: float | None = None
    label_smoothing: float = 0.0
    predictive: ClassVar[Predictive] = "classes"

    def __post_init__(self) -> None:
        check_focal(self, self.focal)
        if isinstance(self.ignore_index, bool) or not isinstance(self.ignore_index, int):
            raise ValueError(f"ignore_index should be a whole number, as -100 or 255: found {self.ignore_index!r}")
        smoothing = self.label_smoothing
        if not (is_number(smoothing) and 0 <= smoothing < 1) or (smoothing and self.focal):
            with_focal = f" with focal={self.focal}" if self.focal else ""
            raise ValueError(f"label_smoothing should lie in [0, 1), without focal: found {smoothing!r}{with_focal}")
        if self.class_weights is not None:
            given: Any = self.class_weights
            given = given.tolist() if isinstance(given, Tensor) else given
            listed = list(given) if isinstance(given, Iterable) and not isinstance(given, str | Mapping) else []
            if not listed or not all(is_number(w) and 0 <= w < inf for w in listed):
                raise ValueError(f"class weights should be at least 0 and finite, one for each class: found {given!r}")
            object.__setattr__(self, "class_weights", tuple(map(float, listed)))

    def logits(self, output: Tensor) -> Tensor:
        """Turn the head's output into logits, float32 or wider."""
        return promote(output)

    def loss(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensors(self.name, output, target, mask)
        logits = self.logits(output)
        if _is_soft(logits, target):
            return self._soft_loss(logits, target, mask)
        mask = self._observed_mask(logits, target, mask)
        classes = logits.shape[1]
        label = torch.where(mask, target, 0).long()
        in_range = (label >= 0) & (label < classes)
        if reads_values(label) and not in_range.all():
            raise ValueError(
                f"labels of a {self.name} task with {classes} outputs should lie in [0, {classes - 1}]: found "
                f"{range_of(label)}; a missing label is ignore_index={self.ignore_index}"
            )
        weights = self._weights(logits)
        label = torch.where(in_range, label, 0)  # a label out of range would abort a CUDA process
        if self.label_smoothing:  # every class has a part in an error, and its own weight
            own = None if weights is None else weights.to(logits)
            error = F.cross_entropy(logits, label, own, reduction="none", label_smoothing=self.label_smoothing)
            error = torch.where(in_range, error, torch.nan)
            total, count = sum_and_count(error, mask)
            if weights is not None:
                count = torch.where(mask, weights[label], 0.0).sum()
            return Counted((total, count), mask.sum())
        error = F.cross_entropy(logits, label, reduction="none")
        if self.focal:
            error = power(-torch.expm1(-error), self.focal) * error
        error = torch.where(in_range, error, torch.nan)  # ... it becomes a NaN loss instead, which is reported
        if weights is None:
            return sum_and_count(error, mask)
        weight = torch.where(mask, weights[label], 0.0)
        pair = (weight * torch.where(mask, error, 0.0)).sum(), weight.sum()
        return Counted(pair, mask.sum())

    def _weights(self, logits: Tensor) -> Tensor | None:
        if self.class_weights is None:
            return None
        if len(self.class_weights) != logits.shape[1]:
            raise ValueError(
                f"class_weights should have one weight for each of {logits.shape[1]} outputs, found "
                f"{len(self.class_weights)}"
            )
        make = _tensor_of if torch.compiler.is_compiling() else _cached_tensor_of
        return make(self.class_weights, logits.device)

    def _soft_loss(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the loss of probabilities as labels; as torch's own, the mean is over labels, not over weights."""
        if self.focal:
            raise ValueError(
                f"labels of a {self.name} task with focal={self.focal} should be class indices: found probabilities, "
                "of which no class is the label's; leave focal out"
            )
        mask = self._observed_mask(logits, target, mask)
        label = torch.where(mask.unsqueeze(1), promote(target), 1 / logits.shape[1])
        if reads_values(label) and ((label < 0).any() or ((label.sum(1) - 1).abs() > 1e-2).any()):
            raise ValueError(
                f"labels of a {self.name} task that are probabilities should be at least 0, with sum 1 over classes: "
                f"found {range_of(label)}, sums of {range_of(label.sum(1))}; give softmax(1) of logits"
            )
        weights = self._weights(logits)
        own = None if weights is None else weights.to(logits)
        smoothing = float(self.label_smoothing)
        error = F.cross_entropy(logits, label.to(logits), own, reduction="none", label_smoothing=smoothing)
        return sum_and_count(error, mask)

    def observed(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        probability, label, there = self.aligned(output, target, mask)
        return probability.movedim(1, -1)[there], label[there]

    def aligned(
        self, output: Tensor, target: Tensor | None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        probability = self.logits(output).softmax(1)
        if target is None:
            target = torch.full_like(probability[:, 0], self.ignore_index, dtype=torch.int64)
        there = self._observed_mask(probability, target, mask)
        return probability, _classes(probability, target), there

    def predicted(self, outputs: Tensor, log_variance: Tensor, correction: Tensor) -> Prediction:
        """Return probabilities and entropies in nats, in which the dispersion `e^s` has no part."""
        return classification((promote(outputs) / correction).softmax(2))

    def paired(self, prediction: Prediction, target: Tensor, mask: Tensor | None = None) -> tuple[Prediction, Tensor]:
        mask = self._observed_mask(prediction.mean, target, mask)
        mean = prediction.mean.movedim(1, -1)[mask]
        return Prediction(mean, *(part[mask] for part in prediction[1:])), _classes(prediction.mean, target)[mask]

    def outputs_of(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits = output[:, : target.shape[1]] if target.dim() == output.dim() else output  # the rest may be their noise
        mask = self._observed_mask(logits, target, mask)
        return output.movedim(1, -1)[mask], _classes(logits, target)[mask]

    def _observed_mask(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        if _is_soft(logits, target):
            there = target.isfinite().all(1)
            return there if mask is None else there & fit_mask(mask, there.shape)
        if target.is_floating_point() or target.is_complex() or target.dtype is torch.bool:
            raise ValueError(
                f"labels of a {self.name} task should be integer class indices, or probabilities of the logits' shape: "
                f"found {target.dtype} {list(target.shape)}; a missing one is ignore_index={self.ignore_index}, or NaN"
            )
        if logits.dim() < 2 or logits.shape[:1] + logits.shape[2:] != target.shape:
            raise ValueError(
                f"a {self.name} task should have logits [B, C, ...] and labels [B, ...]: found logits "
                f"{list(logits.shape)} and labels {list(target.shape)}; {mend_of_classes(logits, target)}"
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
        label_smoothing: ε in [0, 1): a label counts 1 - ε, and every class ε / C, as in `torch.nn.CrossEntropyLoss`.
            Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, Section 7.

    Raises:
        ValueError: a class weight or focal is negative or not finite, label_smoothing is outside [0, 1) or there beside
            focal, or ignore_index is no whole number.

    Shape:
        Logits `[B, C, ...]` and class indices `[B, ...]`, or probabilities `[B, C, ...]` as of mixup or a teacher, NaN
        where a label is missing. Metrics and calibration take the likeliest class for the label.

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
        label_smoothing: see `Categorical`.

    Example:
        >>> from math import log
        >>> round(Categorical().optimum(0.7) - CategoricalHalf().optimum(0.7), 4) == round(log(2), 4)
        True
    """

    factor: ClassVar[float] = 0.5
    meaning: ClassVar[str] = "√CE [-]"


def _is_soft(logits: Tensor, target: Tensor) -> bool:
    """Whether labels are probabilities of classes."""
    return target.is_floating_point() and target.dim() > 1 and target.shape == logits.shape


def _classes(logits: Tensor, target: Tensor) -> Tensor:
    """Return class indices, of probabilities the likeliest: what metrics are given."""
    return target.nan_to_num().argmax(1) if _is_soft(logits, target) else target.long()


def _tensor_of(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device=device)


_cached_tensor_of = lru_cache(maxsize=64)(_tensor_of)  # one copy to the device, not one a step
