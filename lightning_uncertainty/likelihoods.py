r"""Likelihoods: how a task's raw loss becomes a term in its log-variance `s = log σ²`.

Every likelihood here has the same form, with three numbers of its own,

.. math::  J(L, s) = c\, e^{-a s} L + r\, s,

where `L` is the mean residual loss over the *observed scalars* of the batch. The minimum over `s` and the effective
weight there, which is `r / (a L)` whatever `c` is, are

.. math::  s^* = \log(a c L / r) / a, \qquad  c\, e^{-a s^*} = r / (a L).

So `c` decides only what `e^s` means, not how the tasks are balanced at the optimum.

A likelihood whose head gives a scale for every element is normalised already: its `c, a, r` are 1, 0, 0, so that
`J = L`, which may be negative, and there is no second scale to learn (see `heteroscedastic`).

Source: Kendall, Gal & Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018, Eq. 5 to 10.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import inf, log, sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_uncertainty.epistemic import Prediction, binary, classification, regression
from lightning_uncertainty.precision import promote

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "CategoricalHalf",
    "Gaussian",
    "Generic",
    "L1Kendall",
    "Laplace",
    "Likelihood",
    "Poisson",
    "as_likelihood",
    "masked_sum",
    "optimal_log_variance",
    "reads_values",
]


def reads_values(device: torch.device) -> bool:
    """Whether a value may be read on the training path: on eager CPU, where it costs no synchronisation."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def masked_sum(error: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum an elementwise error over its observed scalars and count them.

    `weigh` takes the pair as it is: `self.weigh({"depth": masked_sum(error, mask)})`. Sums and counts add up over
    ranks, means do not. Make missing labels finite *before* the error is computed (`torch.nan_to_num(label)`): a mask
    cannot repair the gradient of NaN.

    Args:
        error: errors of any shape, `[B, ...]`; half types are summed in float32.
        mask: True where a label is observed; None for all. Shape of `error`, or the same without the channel dimension
            (`[B, H, W]` for `[B, C, H, W]`), or `[B]`. Every channel under a mask counts as a scalar.

    Returns:
        `(sum, count)`, two 0-dimensional tensors.

    Raises:
        ValueError: the mask is not boolean, does not fit, or leaves a NaN or an infinity behind it (eager CPU).

    Example:
        >>> depth, label = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.5, float("nan"), 3.0])
        >>> masked_sum((depth - label.nan_to_num()).abs(), ~label.isnan())
        (tensor(0.5000), tensor(2.))
    """
    if mask is not None:
        mask = _fit_mask(mask, error.shape)
        if reads_values(error.device):
            finite = torch.isfinite(error.detach())
            if (finite | ~mask).all() and not finite.all():
                raise ValueError(
                    "errors behind a mask must be finite, found NaN or inf: make missing labels finite before the "
                    "error is computed, as in `torch.nan_to_num(label)`, or their gradient is NaN"
                )
    return sum_and_count(error, mask)


def sum_and_count(error: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    error = promote(error)
    if mask is None:
        return error.sum(), error.new_full((), error.numel())
    return torch.where(mask, error, 0.0).sum(), mask.sum(dtype=error.dtype)


def _fit_mask(mask: Tensor, shape: torch.Size) -> Tensor:
    """Expand a mask to `shape` (see `masked_sum`)."""
    if mask.dtype is not torch.bool:
        raise ValueError(f"a mask should be boolean, found {mask.dtype}: compare it, as in `mask > 0`")
    if len(shape) > 1 and mask.shape == shape[:1] + shape[2:]:
        mask = mask.unsqueeze(1)
    elif mask.shape == shape[:1]:
        mask = mask.reshape(-1, *[1] * (len(shape) - 1))
    fits = mask.dim() == len(shape) and all(m in (1, n) for m, n in zip(mask.shape, shape, strict=True))
    if not fits:
        raise ValueError(
            f"a mask should have the shape of the errors, with or without their channel dimension, or [B]: "
            f"found {list(mask.shape)} for errors {list(shape)}"
        )
    return mask.expand(shape)


def align(name: str, output: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Bring output and labels of one number each to one shape and to float32 or wider.

    Args:
        name: what errors call the likelihood.
        output: `[B, ...]`, with or without a single channel that labels leave out.
        target: `[B, ...]`, NaN where a label is missing.
        mask: True where a label is observed; see `masked_sum`.

    Returns:
        Both, and where a label is observed.

    Raises:
        ValueError: shapes differ, or labels are complex.
    """
    if output.dim() == target.dim() + 1 and output.shape[1] == 1:
        output = output.squeeze(1)  # [B, 1, H, W] beside labels [B, H, W], [B, 1] beside [B]
    if output.shape != target.shape:
        raise ValueError(
            f"labels of a {name} task should have the output's shape {list(output.shape)} "
            f"(a single channel may be left out): found {list(target.shape)}"
        )
    if target.is_complex():
        raise ValueError(f"labels of a {name} task should be real numbers: found {target.dtype}")
    output, target = promote(output), promote(target)
    observed = ~target.isnan()
    return output, target, observed if mask is None else observed & _fit_mask(mask, target.shape)


def optimal_log_variance(loss: Tensor, exponent: Tensor, log_ratio: Tensor) -> Tensor:
    """Return `s* = log(a c L / r) / a`, the minimum of `c e^{-a s} L + r s`; a zero loss counts as float32's tiny.

    Args:
        loss: `L`.
        exponent: `a`; where 0, there is no scale to learn and `s*` is 0.
        log_ratio: `log(a c / r)`.

    Example:
        >>> optimal_log_variance(torch.tensor(4.0), torch.tensor(1.0), torch.tensor(0.0)).exp()  # Gaussian: σ² = MSE
        tensor(4.)
    """
    optimum = (loss.clamp(min=torch.finfo(torch.float32).tiny).log() + log_ratio) / exponent
    return torch.where(exponent > 0, optimum, 0.0)


Predictive = Literal["gaussian", "laplace", "classes", "event", "mean"]


@dataclass(frozen=True)
class Likelihood(ABC):
    """Residual loss of a task, its term in the log-variance, and what `e^s` means.

    Attributes:
        factor: `c` in `c e^{-a s} L + r s`.
        exponent: `a`.
        penalty: `r`.
        meaning: what σ = `e^{s/2}` is at its optimum, and its unit: [label] the label's, [-] none.
        normalised: whether the loss is a negative log-likelihood whose scale the output holds. The numbers above are
            then 1, 0 and 0: the task has weight one, no `s`, and a loss that may be negative.
        predictive: what `predicted` states of a label: a density with σ, a class, an event, or a mean alone.
    """

    factor: ClassVar[float]
    exponent: ClassVar[float] = 1.0
    penalty: ClassVar[float] = 0.5
    meaning: ClassVar[str]
    normalised: ClassVar[bool] = False
    predictive: ClassVar[Predictive] = "mean"

    @property
    def needs_sigma(self) -> bool:
        """Whether `predicted` takes the aleatoric uncertainty from the task's log-variance."""
        return self.predictive in ("gaussian", "laplace") and not self.normalised

    @property
    def name(self) -> str:
        """The word by which `LIKELIHOODS` knows this likelihood."""
        return next((name for name, kind in LIKELIHOODS.items() if kind is type(self)), type(self).__name__)

    @property
    def log_ratio(self) -> float:
        """The constant `log(a c / r)` of the optimum; 0 where there is none."""
        return 0.0 if self.normalised else log(self.exponent * self.factor / self.penalty)

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the residual loss summed over the observed scalars, and their count.

        Args:
            output: what the head returns, `[B, ...]`.
            target: labels; a missing label is NaN (class indices: `ignore_index`) or False in `mask`.
            mask: True where a label is observed; see `masked_sum` for its shapes.

        Returns:
            `(sum, count)` in float32 or wider; `sum / count` is the `L` of the formula.

        Raises:
            ValueError: shape, dtype or (on eager CPU) value of the labels is not what the likelihood needs.
        """

    @abstractmethod
    def observed(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return predictions in label space and labels of the observed scalars only, flat: what metrics are given.

        Returns:
            Predictions `[N]`, or class probabilities `[N, C]`, and labels `[N]`.
        """

    @abstractmethod
    def predicted(self, outputs: Tensor, log_variance: Tensor, correction: Tensor) -> Prediction:
        """Return what outputs say of a label, and how sure they are.

        Args:
            outputs: what the head returned in S passes, or those of S models, `[S, B, ...]`.
            log_variance: `s` of the task, 0-dimensional, or what broadcasts to the outputs, as one for each of S models
                `[S, 1, ...]`. Where it is NaN, so are the aleatoric and the total uncertainty of a density.
            correction: what recalibration found, likewise: a factor on σ, or a temperature that divides the logits of
                classes and events; 1 is none.
        """

    def paired(self, prediction: Prediction, target: Tensor, mask: Tensor | None = None) -> tuple[Prediction, Tensor]:
        """Return a prediction and the labels of the observed scalars only, flat.

        Returns:
            A prediction of tensors `[N]`, the mean `[N, C]` for classes, and labels `[N]`.

        Raises:
            ValueError: shape or dtype of the labels is not what the likelihood needs.
        """
        aligned = [align(self.name, part, target, mask) for part in prediction]
        _, labels, there = aligned[0]
        return Prediction(*(part[there] for part, _, _ in aligned)), labels[there]

    def outputs_of(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return outputs `[N]` or `[N, channels]` and labels `[N]` of the observed scalars only, flat."""
        output, target, there = align(self.name, output, target, mask)
        return output[there], target[there]

    def optimum(self, loss: float) -> float:
        """Return the log-variance that minimises the term of a mean loss.

        Example:
            >>> round(Categorical().optimum(0.5), 6) + 0.0  # e^s = 2 CE = 1
            0.0
        """
        numbers = torch.tensor([loss, self.exponent, self.log_ratio], dtype=torch.float64)
        return float(optimal_log_variance(*numbers.unbind()))


class _Elementwise(Likelihood):
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
        if reads_values(target.device):
            self.check_labels(finite_target)
        return sum_and_count(self.error(output, finite_target), mask)

    def observed(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, target, mask = align(self.name, output, target, mask)
        return self.mean(output)[mask], target[mask]


@dataclass(frozen=True)
class Gaussian(_Elementwise):
    """Squared error under `N(f, σ²)`; Kendall et al., CVPR 2018, Eq. 5.

    `J = ½ e^{-s} L + ½ s` with `L` the mean squared error. At the optimum σ = `e^{s/2}` is the root mean squared
    residual, in label units.

    Example:
        >>> Gaussian().loss(torch.tensor([1.0, 2.0]), torch.tensor([3.0, float("nan")]))
        (tensor(4.), tensor(1.))
    """

    factor: ClassVar[float] = 0.5
    meaning: ClassVar[str] = "RMSE [label]"
    predictive: ClassVar[Predictive] = "gaussian"

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square()

    def variance(self, mean: Tensor, scale: Tensor) -> Tensor:
        return scale


@dataclass(frozen=True)
class Laplace(_Elementwise):
    """Absolute error under a Laplace density of standard deviation σ = √2 b.

    `J = √2 e^{-s/2} L + ½ s` with `L` the mean absolute error: the exact likelihood of what Kendall et al. (CVPR 2018,
    below Eq. 5) call "similarly for a Laplace likelihood". At the optimum σ = √2 · MAE, in label units. `L1Kendall`
    is the literal Gaussian form fed with the same error.

    Example:
        >>> round(Laplace().optimum(3.0), 4) == round(2 * log(sqrt(2) * 3), 4)
        True
    """

    factor: ClassVar[float] = sqrt(2.0)
    exponent: ClassVar[float] = 0.5
    meaning: ClassVar[str] = "√2·MAE [label]"
    predictive: ClassVar[Predictive] = "laplace"

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).abs()

    def variance(self, mean: Tensor, scale: Tensor) -> Tensor:
        return scale


@dataclass(frozen=True)
class L1Kendall(_Elementwise):
    """Absolute error in the Gaussian form, literally as Kendall et al., CVPR 2018, Eq. 7 with their L1 losses.

    `J = ½ e^{-s} L + ½ s` with `L` the mean absolute error. The effective weight at the optimum is `1 / (2 L)`; that of
    `Laplace` is `1 / L` for every Laplace task, so the balance among such tasks is the same and only the meaning of σ
    differs: here it is `e^s`, not σ, that carries the label's unit (`e^s` = MAE). Do not read σ as a deviation.

    Example:
        >>> round(torch.tensor(L1Kendall().optimum(3.0)).exp().item(), 4)
        3.0
    """

    factor: ClassVar[float] = 0.5
    meaning: ClassVar[str] = "√MAE [√label]"
    predictive: ClassVar[Predictive] = "laplace"

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).abs()

    def variance(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Return `2 b²`, that of a Laplace density with `b = e^s`, the mean absolute error."""
        return 2 * scale.square()


@dataclass(frozen=True)
class Bernoulli(_Elementwise):
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
        _check_focal(self, self.focal)

    def check_labels(self, target: Tensor) -> None:
        if ((target < 0) | (target > 1)).any():
            raise ValueError(
                f"labels of a {self.name} task should lie in [0, 1]: found {_range(target)}; mark missing ones by NaN "
                "or a mask"
            )

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        if self.pos_weight == 1.0:
            error = F.binary_cross_entropy_with_logits(output, target, reduction="none")
        else:
            error = -self.pos_weight * target * F.logsigmoid(output) - (1 - target) * F.logsigmoid(-output)
        if not self.focal:
            return error
        return _power(target * torch.sigmoid(-output) + (1 - target) * torch.sigmoid(output), self.focal) * error

    def mean(self, output: Tensor) -> Tensor:
        return output.sigmoid()

    def predicted(self, outputs: Tensor, log_variance: Tensor, correction: Tensor) -> Prediction:
        """Return probabilities and entropies in nats, in which the dispersion `e^s` has no part."""
        return binary((promote(outputs) / correction).sigmoid())

    def observed(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        probability, label = super().observed(output, target, mask)
        return probability, label.round().long()


@dataclass(frozen=True)
class Poisson(_Elementwise):
    """Unit deviance of counts, the head giving the log-rate `f`.

    `D = 2 [y log(y / μ) - (y - μ)]` with `μ = e^f`, and `J = ½ e^{-s} L + ½ s` with `L` the mean deviance: the extended
    quasi-likelihood of Nelder & Pregibon (Biometrika 1987). `e^s` at the optimum is the dispersion (1 where the
    counts are Poisson). `torch.nn.PoissonNLLLoss` drops the terms in `y` and can be negative: never weigh that.

    Example:
        >>> total, count = Poisson().loss(torch.tensor([3.0]).log(), torch.tensor([3.0]))
        >>> round(total.item(), 6)
        0.0
    """

    factor: ClassVar[float] = 0.5
    meaning: ClassVar[str] = "√deviance [-]"
    predictive: ClassVar[Predictive] = "gaussian"

    def check_labels(self, target: Tensor) -> None:
        if (target < 0).any():
            raise ValueError(
                f"labels of a {self.name} task should be counts, at least 0: found {_range(target)}; mark missing ones "
                "by NaN or a mask"
            )

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        positive = target > 0
        # with d = f - log y the deviance is 2 y (e^d - 1 - d): no difference of large numbers; y = 0 gives 2 e^f
        d = torch.where(positive, output - torch.where(positive, target, 1.0).log(), 0.0)
        return 2 * torch.where(positive, target * (d.expm1() - d), torch.where(positive, 0.0, output).exp())

    def mean(self, output: Tensor) -> Tensor:
        return output.exp()

    def variance(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Return `e^s μ`: the variance of a Poisson count times the dispersion."""
        return scale * mean


@dataclass(frozen=True)
class Generic(_Elementwise):
    """Any other positive loss.

    `J = ½ e^{-s} L + ½ s`; `e^s` at the optimum is `L` itself, a scale and no variance.

    Args:
        elementwise: `elementwise(output, target)` returns one positive error per scalar, for example
            `partial(F.smooth_l1_loss, reduction="none")`. Needed only where the task owns its loss (`task_step`);
            `weigh` takes any positive loss.

    Example:
        >>> huber = Generic(lambda output, target: F.huber_loss(output, target, reduction="none"))
        >>> huber.loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0]))
        (tensor(0.5000), tensor(2.))
    """

    elementwise: Callable[[Tensor, Tensor], Tensor] | None = None
    factor: ClassVar[float] = 0.5
    meaning: ClassVar[str] = "√loss [-]"

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        if self.elementwise is None:
            raise ValueError(
                "a generic task that owns its loss needs the elementwise error: give `Generic(elementwise=...)`, or "
                "compute the loss yourself and hand it to `weigh`"
            )
        error = self.elementwise(output, target)
        if error.shape != target.shape:
            raise ValueError(
                f"elementwise should return one error per label {list(target.shape)}: found {list(error.shape)}; use "
                'reduction="none"'
            )
        return error


def _check_focal(likelihood: Likelihood, focal: float | None) -> None:
    """Have a likelihood with focal errors say so.

    Raises:
        ValueError: the exponent is negative or not finite.
    """
    if focal is not None and not 0 <= focal < inf:
        raise ValueError(f"focal should be an exponent, finite and at least 0: found {focal}")
    if focal:
        object.__setattr__(likelihood, "meaning", f"{type(likelihood).meaning.removesuffix(' [-]')}, focal [-]")


def _power(probability: Tensor, exponent: float) -> Tensor:
    """Return a power whose gradient is finite at 0."""
    return probability.clamp(min=torch.finfo(torch.float32).tiny).pow(exponent)


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
        _check_focal(self, self.focal)
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
        if reads_values(label.device) and not in_range.all():
            raise ValueError(
                f"labels of a {self.name} task with {classes} outputs should lie in [0, {classes - 1}]: found "
                f"{_range(label)}; a missing label is ignore_index={self.ignore_index}"
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
            error = _power(-torch.expm1(-error), self.focal) * error
        error = torch.where(in_range, error, torch.nan)  # ... it becomes a NaN loss instead, which is reported
        if weights is None:
            return sum_and_count(error, mask)
        weight = torch.where(mask, weights[label], 0.0)
        return (weight * torch.where(mask, error, 0.0)).sum(), weight.sum()

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
        return observed if mask is None else observed & _fit_mask(mask, target.shape)


@dataclass(frozen=True)
class Categorical(ClassLabels):
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
class CategoricalHalf(ClassLabels):
    """Cross-entropy under `1/(2σ²)`, as many public codes have it.

    `J = ½ e^{-s} L + ½ s`. Its optimum is `e^s = L` in place of `2 L`, and the effective weight there `1 / (2 L)` is
    that of `Categorical`: only σ differs, by √2.

    Args:
        ignore_index: label of a missing class.
        class_weights: a factor for each class; the mean then divides by the sum of weights, as torch's own does.
        focal: see `Categorical`.

    Example:
        >>> round(Categorical().optimum(0.7) - CategoricalHalf().optimum(0.7), 4) == round(log(2), 4)
        True
    """

    factor: ClassVar[float] = 0.5
    meaning: ClassVar[str] = "√CE [-]"


def _tensor_of(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device=device)


_cached_tensor_of = lru_cache(maxsize=64)(_tensor_of)  # one copy to the device, not one a step


def _range(labels: Tensor) -> str:
    return f"{labels.min().item():g} to {labels.max().item():g}"


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "l1_kendall": L1Kendall,
    "categorical": Categorical,
    "categorical_half": CategoricalHalf,
    "bernoulli": Bernoulli,
    "poisson": Poisson,
    "generic": Generic,
}


def as_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """Return a likelihood given by its name or as itself.

    Raises:
        ValueError: no likelihood has that name.

    Example:
        >>> as_likelihood("laplace")
        Laplace()
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str) or likelihood not in LIKELIHOODS:
        raise ValueError(
            f"a likelihood should be one of {', '.join(LIKELIHOODS)}, or a Likelihood: found {likelihood!r}"
        )
    return LIKELIHOODS[likelihood]()
