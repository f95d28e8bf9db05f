"""The factor and the temperature that make held-out labels likeliest."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["LEAST", "MOST", "cross_entropy", "fitted_factor", "fitted_temperature"]

LEAST, MOST = 0.05, 20.0  # temperatures
_STEPS = 60  # of the golden section, which shrinks its interval to 62 % in each


def fitted_factor(mean: float, distribution: str) -> float:
    """Return the factor on σ that makes standardised residuals likeliest: `√mean z²`, or `√2 mean |z|` (laplace).

    Example:
        >>> fitted_factor(9.0, "gaussian")
        3.0
    """
    return math.sqrt(2) * mean if distribution == "laplace" else math.sqrt(mean)


def fitted_temperature(nll: Callable[[float], float]) -> float:
    """Return the temperature from 0.05 to 20 with the least negative log-likelihood, by golden section in its log.

    The likelihood is log-concave in the inverse temperature, so that there is no other minimum. Guo et al., ICML 2017.

    Example:
        >>> round(fitted_temperature(lambda t: math.log(t / 3) ** 2), 4)
        3.0
    """
    shrink = (math.sqrt(5) - 1) / 2
    low, high = math.log(LEAST), math.log(MOST)
    left, right = high - shrink * (high - low), low + shrink * (high - low)
    at_left, at_right = nll(math.exp(left)), nll(math.exp(right))
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - shrink * (high - low)
            at_left = nll(math.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + shrink * (high - low)
            at_right = nll(math.exp(right))
    return math.exp((low + high) / 2)


def cross_entropy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return -log p of class labels `[N]` for `[N, C]`, or of events between 0 and 1 for `[N]`."""
    tiny = torch.finfo(probabilities.dtype).tiny
    if probabilities.dim() > 1:
        return -probabilities.gather(1, labels[:, None]).clamp(min=tiny).log()
    yes, no = probabilities.clamp(min=tiny).log(), (1 - probabilities).clamp(min=tiny).log()
    return -(labels * yes + (1 - labels) * no)
