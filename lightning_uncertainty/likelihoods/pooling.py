"""Samples that come one after the other, kept as what they say together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_uncertainty.likelihoods._base import Likelihood
from lightning_uncertainty.likelihoods.prediction import Prediction, divergence

__all__ = ["Pool"]


class Pool:
    """What samples say together, of which a few maps are kept, however many there are.

    Variances add up by the law of total variance. The divergences of samples from their mean `p` are those from any
    `q`, here the first sample, less that of the mean: `mean_s KL(p_s || p) = mean_s KL(p_s || q) - KL(p || q)`.

    Args:
        likelihood: of the task.

    Example:
        >>> from lightning_uncertainty.likelihoods import Gaussian, regression
        >>> pool = Pool(Gaussian())
        >>> for mean in (1.0, 7.0):
        ...     pool.add(regression(torch.full((1, 1), mean), torch.tensor(16.0)), samples=1)
        >>> pool.prediction()
        Prediction(mean=tensor([4.]), aleatoric=tensor([4.]), epistemic=tensor([3.]), total=tensor([5.]))
    """

    def __init__(self, likelihood: Likelihood) -> None:
        self._kind = likelihood.predictive
        self._samples = 0
        self._first: Tensor  # mean of the first ones; what follows is kept as a distance from it, to the last digit
        self._shift: Tensor
        self._aleatoric: Tensor
        self._epistemic: Tensor

    def add(self, prediction: Prediction, samples: int) -> None:
        """Add what some more samples say.

        Args:
            prediction: of these samples.
            samples: how many they are.
        """
        self._samples += samples
        if self._samples == samples:
            self._first, self._aleatoric, self._epistemic, _ = prediction
            self._shift = torch.zeros_like(self._first)
            return
        share = samples / self._samples
        away = torch.where(prediction.mean == self._first, 0.0, prediction.mean - self._first) - self._shift
        self._shift = self._shift + share * away
        if self._kind in ("classes", "event"):
            from_first = prediction.epistemic + self._divergence(prediction.mean)
            self._aleatoric = torch.lerp(self._aleatoric, prediction.aleatoric, share)
            self._epistemic = torch.lerp(self._epistemic, from_first, share)
        else:
            self._aleatoric = _root_mean_square(self._aleatoric, prediction.aleatoric, share)
            within = _root_mean_square(self._epistemic, prediction.epistemic, share)
            self._epistemic = torch.hypot(within, math.sqrt(share * (1 - share)) * away)

    def prediction(self) -> Prediction:
        """Return what all say together."""
        mean = self._first + self._shift
        if self._kind in ("classes", "event"):
            epistemic = (self._epistemic - self._divergence(mean)).clamp_min(0)  # its rounding may be below
            return Prediction(mean, self._aleatoric, epistemic, self._aleatoric + epistemic)
        return Prediction(mean, self._aleatoric, self._epistemic, torch.hypot(self._aleatoric, self._epistemic))

    def _divergence(self, probabilities: Tensor) -> Tensor:
        """Return that from the first sample."""
        if self._kind == "classes":
            return divergence(probabilities, self._first, dim=1)
        yes, first = probabilities, self._first
        return divergence(torch.stack([yes, 1 - yes]), torch.stack([first, 1 - first]), dim=0)


def _root_mean_square(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Return `√((1 - share) first² + share second²)`, whose squares need not fit the type; of equals exactly these."""
    most = torch.maximum(first, second).clamp_min(torch.finfo(first.dtype).tiny)
    squares = (first / most).square(), (second / most).square()
    return most * torch.lerp(*squares, share).sqrt()
