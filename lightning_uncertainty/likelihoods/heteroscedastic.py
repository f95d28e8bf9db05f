r"""Likelihoods whose head gives a scale for every element: aleatoric uncertainty that depends on the input.

An output `[B, 2C, ...]`, as of `HeteroscedasticHead`, holds means (or logits) in its first `C` channels and
log-variances `s = log σ²` in the others. The loss is a negative log-likelihood, up to a constant, and normalised
already: a weighting gives it the weight one (times its base weight) and no `s` of the task, which could not be told
apart from those of the elements. It may be negative.

Log-variances count as at least -60 and at most 60, where `e^{-s}` and `e^s` times a square still fit float32. Beyond,
only the gradient that leads back is kept: no element that once left is lost, as it would be with a clamp.

Source: Kendall & Gal, "What Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?", NeurIPS 2017.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_uncertainty._tensors import is_number, one_way_clamp, promote
from lightning_uncertainty.likelihoods._base import Likelihood, Predictive
from lightning_uncertainty.likelihoods._labels import align, align_whole, sum_and_count
from lightning_uncertainty.likelihoods.categorical import ClassLabels
from lightning_uncertainty.likelihoods.densities import gaussian_nll, laplace_nll, noisy_log_probabilities
from lightning_uncertainty.likelihoods.prediction import Prediction, classification, regression

__all__ = ["HeteroscedasticCategorical", "HeteroscedasticGaussian", "HeteroscedasticLaplace"]

_MOST = 60.0  # of |s|
_MEANING = "its head's, per element"


def _halves(name: str, output: Tensor, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Return means and log-variances `[..., C, ...]` of an output, float32 or wider.

    Raises:
        ValueError: there is no even number of channels.
    """
    if output.dim() <= channels or output.shape[channels] % 2 or not output.shape[channels]:
        raise ValueError(
            f"the output of a {name} task should have 2C channels, means then log-variances: found shape "
            f"{list(output.shape)}; take a HeteroscedasticHead"
        )
    mean, log_variance = promote(output).chunk(2, channels)
    most = log_variance.new_full((), _MOST)
    return mean, one_way_clamp(log_variance, -most, most)


class _Regression(Likelihood):
    """One error per mean; a NaN label is missing."""

    factor: ClassVar[float] = 1.0
    exponent: ClassVar[float] = 0.0
    penalty: ClassVar[float] = 0.0
    normalised: ClassVar[bool] = True
    meaning: ClassVar[str] = _MEANING
    predictive: ClassVar[Predictive] = "gaussian"

    @abstractmethod
    def nll(self, mean: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
        """Elementwise loss of finite labels, shape of all three."""

    def loss(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, log_variance = _halves(self.name, output)
        mean, target, mask = align(self.name, mean, target, mask)
        error = self.nll(mean, log_variance.reshape(mean.shape), torch.where(mask, target, 0.0))
        return sum_and_count(error, mask)

    def observed(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, target, mask = align(self.name, _halves(self.name, output)[0], target, mask)
        return mean[mask], target[mask]

    def aligned(
        self, output: Tensor, target: Tensor | None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return align_whole(self.name, _halves(self.name, output)[0], target, mask)

    def outputs_of(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return means and log-variances `[N, 2]` of the observed labels only, and these `[N]`."""
        mean, log_variance = _halves(self.name, output)
        mean, target, there = align(self.name, mean, target, mask)
        return torch.stack([mean[there], log_variance.reshape(mean.shape)[there]], 1), target[there]

    def predicted(self, outputs: Tensor, log_variance: Tensor, correction: Tensor) -> Prediction:
        """Return mean and deviations, in label units, by the head's own variances; `log_variance` has no part in it.

        Args:
            outputs: `[S, B, 2C, ...]`, of `S` passes or models.
            log_variance: that of the task, which a normalised likelihood does not have.
            correction: factor on every σ; 1 is none.
        """
        means, own = _halves(self.name, outputs, channels=2)
        return regression(means, own.exp() * correction.to(own).square())


@dataclass(frozen=True)
class HeteroscedasticGaussian(_Regression):
    r"""Squared error under `N(μ(x), σ²(x))`; Kendall & Gal, NeurIPS 2017, Eq. 8.

    .. math::  J = L = \operatorname{mean} \left( \tfrac12 e^{-s} (y - \mu)^2 + \tfrac12 s \right)

    over the observed scalars: the negative log-likelihood less `½ log 2π`. What is far from its label is thought to be
    noise early on, and then hardly trained: a `beta` or the `burn_in` of the head help.

    Args:
        beta: `β` in [0, 1]. Each element counts `e^{β s}` times, held constant in the gradient; 0.5 is what the paper
            proposes, with 1 the mean has the gradient of the squared error. The value is then no likelihood: compare it
            with none, nor among `β`. Seitzer et al., "On the Pitfalls of Heteroscedastic Uncertainty Estimation with
            Probabilistic Neural Networks", ICLR 2022.

    Raises:
        ValueError: beta is outside [0, 1].

    Shape:
        Output `[B, 2C, ...]`, labels `[B, C, ...]`, or `[B, ...]` where `C` is 1.

    Example:
        >>> output = torch.tensor([[1.0, 0.0], [2.0, 0.0]])  # means 1 and 2, both with σ = 1
        >>> HeteroscedasticGaussian().loss(output, torch.tensor([3.0, float("nan")]))
        (tensor(2.), tensor(1.))
    """

    beta: float = 0.0

    def __post_init__(self) -> None:
        if not (is_number(self.beta) and 0 <= self.beta <= 1):
            raise ValueError(f"beta should lie in [0, 1]: found {self.beta!r}")

    def nll(self, mean: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
        return gaussian_nll(mean, log_variance, target, self.beta)


@dataclass(frozen=True)
class HeteroscedasticLaplace(_Regression):
    r"""Absolute error under a Laplace density of standard deviation `σ(x) = √2 b(x)`.

    .. math::  J = L = \operatorname{mean} \left( \frac{|y - \mu|}{b} + \log b \right),
               \qquad b = e^{s/2} / \sqrt 2,

    the negative log-likelihood less `log 2`. Kendall & Gal, NeurIPS 2017, use it for depth.

    Shape:
        Output `[B, 2C, ...]`, labels `[B, C, ...]`, or `[B, ...]` where `C` is 1.

    Example:
        >>> import math
        >>> total, count = HeteroscedasticLaplace().loss(torch.tensor([[1.0, math.log(2)]]), torch.tensor([3.0]))
        >>> round(total.item(), 4)  # b = 1
        2.0
    """

    predictive: ClassVar[Predictive] = "laplace"

    def nll(self, mean: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
        return laplace_nll(mean, log_variance, target)


@dataclass(frozen=True)
class HeteroscedasticCategorical(ClassLabels):
    r"""Cross-entropy of logits with Gaussian noise whose scale the head gives; Kendall & Gal, NeurIPS 2017, Eq. 12.

    .. math::  J = L = -\log \frac1T \sum_t \operatorname{softmax}(f + \sigma \epsilon_t)_y, \qquad
               \epsilon_t \sim \mathcal N(0, I),

    averaged over the observed labels. The noise is drawn anew in every call, in evaluation too, from torch's generator
    of the output's device: a validation loss varies with it, a little above what endless samples would give. Memory
    grows with `T` times the logits.

    Args:
        ignore_index: label of a missing class.
        class_weights: see `Categorical`.
        focal: see `Categorical`.
        samples: `T`.

    Raises:
        ValueError: samples are no whole number or below 1; see `Categorical` for the others.

    Shape:
        Output `[B, 2C, ...]`: logits, then the log-variances of their noise. Labels `[B, ...]`.

    Example:
        >>> output = torch.tensor([[0.0, 0.0, -60.0, -60.0]])  # no noise to speak of
        >>> total, count = HeteroscedasticCategorical(samples=5).loss(output, torch.tensor([1]))
        >>> round(total.item(), 4), count.item()  # log 2, one label
        (0.6931, 1.0)
    """

    samples: int = field(default=10, kw_only=True)
    factor: ClassVar[float] = 1.0
    exponent: ClassVar[float] = 0.0
    penalty: ClassVar[float] = 0.0
    normalised: ClassVar[bool] = True
    meaning: ClassVar[str] = _MEANING

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.samples, int) or self.samples < 1:
            raise ValueError(f"samples should be a whole number, at least 1: found {self.samples}")

    def logits(self, output: Tensor) -> Tensor:
        """Return the logs of mean probabilities, which are logits of these."""
        return self._log_probabilities(*_halves(self.name, output))

    def predicted(self, outputs: Tensor, log_variance: Tensor, correction: Tensor) -> Prediction:
        """Return probabilities and entropies, in nats; `log_variance` has no part in it.

        Args:
            outputs: `[S, B, 2C, ...]`, of `S` passes or models.
            log_variance: that of the task, which a normalised likelihood does not have.
            correction: a temperature that divides the noisy logits; 1 is none.
        """
        logits, own = _halves(self.name, outputs, channels=2)
        cooler = correction.to(logits)
        found = self._log_probabilities((logits / cooler).flatten(0, 1), (own - 2 * cooler.log()).flatten(0, 1))
        return classification(found.exp().reshape(logits.shape))

    def _log_probabilities(self, logits: Tensor, log_variance: Tensor) -> Tensor:
        noise = torch.randn((self.samples, *logits.shape), dtype=logits.dtype, device=logits.device)
        return noisy_log_probabilities(logits, log_variance, noise)
