"""Negative log-likelihoods of means (or logits) with a scale for each, elementwise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["gaussian_nll", "laplace_nll", "noisy_log_probabilities"]


def gaussian_nll(mean: Tensor, log_variance: Tensor, target: Tensor, beta: float = 0.0) -> Tensor:
    r"""Return :math:`\lfloor e^{s} \rfloor^\beta \left( \tfrac12 e^{-s} (y - \mu)^2 + \tfrac12 s \right)`, elementwise.

    Without the constant `½ log 2π`; what is within floors has no gradient. Kendall & Gal, NeurIPS 2017, Eq. 8; with a
    `β`, Seitzer et al., ICLR 2022.

    Example:
        >>> gaussian_nll(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(3.0))
        tensor(2.)
    """
    nll = 0.5 * (torch.exp(-log_variance) * (target - mean).square() + log_variance)
    return torch.exp(beta * log_variance).detach() * nll if beta else nll


def laplace_nll(mean: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    """Return `|y - μ| / b + log b`, elementwise, with `b = σ/√2 = e^{s/2}/√2`; without the constant `log 2`.

    Example:
        >>> round(laplace_nll(torch.tensor(1.0), torch.tensor(2.0).log(), torch.tensor(3.0)).item(), 6)  # b = 1
        2.0
    """
    log_scale = 0.5 * (log_variance - math.log(2))
    return torch.exp(-log_scale) * (target - mean).abs() + log_scale


def noisy_log_probabilities(logits: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    r"""Return :math:`\log \frac1T \sum_t \operatorname{softmax}(f + \sigma \epsilon_t)`, the log of a mean probability.

    The mean of logs would be another, larger loss. Kendall & Gal, NeurIPS 2017, Eq. 12.

    Args:
        logits: `f`, `[B, C, ...]`.
        log_variance: `log σ²`, of that shape.
        noise: `ε`, `[T, B, C, ...]`.

    Returns:
        Log-probabilities `[B, C, ...]`.

    Example:
        >>> noisy_log_probabilities(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(3, 1, 2)).exp()
        tensor([[0.5000, 0.5000]])
    """
    noisy = logits + torch.exp(0.5 * log_variance) * noise
    return torch.logsumexp(noisy.log_softmax(2), 0) - math.log(len(noise))
