"""How good predictive distributions of a label are: one number over an epoch."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_uncertainty.metrics._predictive import Distribution, add, check_distribution, observed_errors

__all__ = ["CRPS", "PredictiveNLL", "Sharpness"]


def gaussian_nll(error: Tensor, std: Tensor) -> Tensor:
    """Return -log N(error; 0, σ²)."""
    return (error / std).square() / 2 + std.log() + math.log(2 * math.pi) / 2


def laplace_nll(error: Tensor, std: Tensor) -> Tensor:
    """Return -log of the Laplace density of standard deviation σ, whose scale is `b = σ / √2`."""
    return math.sqrt(2) * error.abs() / std + std.log() + math.log(2) / 2


def gaussian_crps(error: Tensor, std: Tensor) -> Tensor:
    """Return `σ [z (2Φ(z) - 1) + 2φ(z) - 1/√π]` with `z = |error| / σ`; `|error|` where σ = 0."""
    z = _distance(error, std)
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    return error.abs() * torch.erf(z / math.sqrt(2)) + std * (2 * density - 1 / math.sqrt(math.pi))


def laplace_crps(error: Tensor, std: Tensor) -> Tensor:
    """Return `|error| + b exp(-|error| / b) - 3b/4` with `b = σ / √2`; `|error|` where σ = 0."""
    scale = std / math.sqrt(2)
    return error.abs() + scale * (-_distance(error, scale)).exp() - 0.75 * scale


def _distance(error: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale > 0, error.abs() / scale, math.inf)


class _MeanScore(Metric):
    """Mean over observed labels of a number `[...]` for each; None where no label was observed."""

    full_state_update = False
    higher_is_better = False
    total: Tensor
    count: Tensor
    _positive_std = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(2, dtype=torch.float32, device="cpu"), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64, device="cpu"), dist_reduce_fx="sum")

    def update(self, mean: Tensor, std: Tensor, target: Tensor) -> None:
        """Add predictions and labels, all in units of the label.

        Args:
            mean: `[...]`.
            std: standard deviation σ `[...]`, or what broadcasts to the shape of the labels.
            target: labels `[...]`; NaN where missing.

        Raises:
            ValueError: shapes do not fit, or a standard deviation has no meaning (eager CPU).
        """
        error, std, observed = observed_errors(mean, std, target, positive=self._positive_std)
        self.total = add(self.total, torch.where(observed, self._score(error, std), 0.0).sum())
        self.count += observed.sum()

    def compute(self) -> Tensor | None:
        return self.total.sum() / self.count if self.count > 0 else None

    @abstractmethod
    def _score(self, error: Tensor, std: Tensor) -> Tensor:
        """Return the number `[...]` of every label."""


class _DensityScore(_MeanScore):
    """A score of the density of one of two distributions."""

    def __init__(self, distribution: Distribution = "gaussian") -> None:
        check_distribution(distribution)
        super().__init__()
        self.distribution = distribution


class PredictiveNLL(_DensityScore):
    r"""Mean negative log density of the observed labels, in nats, with all constants: lower is better.

    .. math::

        \text{gaussian: } \frac{(y - \mu)^2}{2 \sigma^2} + \log \sigma + \tfrac12 \log 2\pi \qquad
        \text{laplace: } \frac{|y - \mu|}{b} + \log 2b, \; b = \sigma / \sqrt 2

    It is negative where σ is well below the unit of the label; values of other units differ by a constant. Its value is
    None where no label was observed.

    Args:
        distribution: of the label around its mean; σ is the standard deviation of either.

    Raises:
        ValueError: there is no such distribution.

    Source: Gneiting & Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", JASA 2007 (logarithmic
    score).

    Example:
        >>> metric = PredictiveNLL()
        >>> metric.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([1.0, float("nan")]))
        >>> metric.compute()  # log(2π) / 2
        tensor(0.9189)
    """

    _positive_std = True

    def _score(self, error: Tensor, std: Tensor) -> Tensor:
        return gaussian_nll(error, std) if self.distribution == "gaussian" else laplace_nll(error, std)


class CRPS(_DensityScore):
    r"""Mean continuous ranked probability score, in units of the label: lower is better.

    .. math::

        \int (F(x) - 1[x \ge y])^2 dx = \begin{cases}
            \sigma [z (2 \Phi(z) - 1) + 2 \varphi(z) - 1 / \sqrt\pi], \; z = (y - \mu) / \sigma & \text{gaussian} \\
            |y - \mu| + b e^{-|y - \mu| / b} - \tfrac34 b, \; b = \sigma / \sqrt 2 & \text{laplace}
        \end{cases}

    It is the absolute error of a prediction without spread (σ = 0), and forgives outliers more than `PredictiveNLL`.
    Its value is None where no label was observed.

    Args:
        distribution: of the label around its mean; σ is the standard deviation of either.

    Raises:
        ValueError: there is no such distribution.

    Source: Gneiting & Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", JASA 2007.

    Example:
        >>> metric = CRPS()
        >>> metric.update(torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([3.0]))
        >>> metric.compute()  # (√2 - 1) / √π
        tensor(0.2337)
    """

    def _score(self, error: Tensor, std: Tensor) -> Tensor:
        return gaussian_crps(error, std) if self.distribution == "gaussian" else laplace_crps(error, std)


class Sharpness(_MeanScore):
    r"""Mean predictive standard deviation of the observed labels, in units of the label.

    .. math::  \frac1N \sum_i \sigma_i

    Among calibrated predictions the sharpest are best; alone it says nothing, as it looks at no error. The mean width
    of central intervals, of any level, is proportional to it. Its value is None where no label was observed.

    Source: Gneiting, Balabdaoui & Raftery, "Probabilistic Forecasts, Calibration and Sharpness", JRSS B 2007.

    Example:
        >>> metric = Sharpness()
        >>> metric.update(torch.zeros(2), torch.tensor([1.0, 3.0]), torch.zeros(2))
        >>> metric.compute()
        tensor(2.)
    """

    def _score(self, error: Tensor, std: Tensor) -> Tensor:
        return std
