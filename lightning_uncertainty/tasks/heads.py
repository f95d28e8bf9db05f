"""Heads, and what stands behind one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_uncertainty._tensors import Float32Module, keep_for_backward, promote

__all__ = ["HeteroscedasticHead", "Rescale"]

_MOST_COUNTED = 1 << 24  # by float32, one by one


class Rescale(Float32Module):
    """Map a head's output near 0 and 1 to label units: `mean + std · output`, both constants.

    Behind a linear layer it lets labels in grams train at a learning rate of 1e-3, while loss, σ and metrics stay in
    grams. It computes in float32: a body mass of 4207 g is not a bfloat16 number.

    Args:
        mean: mean of the training labels, one number or one per output channel.
        std: their standard deviation, positive, likewise.

    Raises:
        ValueError: a number is not finite, a deviation is not positive, or their counts differ.

    Shape:
        `[B, C, ...]` to `[B, C, ...]`, channels second.

    Example:
        >>> from torch import nn
        >>> head = nn.Sequential(nn.Linear(8, 1), Rescale(4207.0, 802.0))
        >>> head[1](torch.tensor([[0.0], [1.0]])).tolist()
        [[4207.0], [5009.0]]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        first = (torch.as_tensor(numbers, dtype=torch.float32, device="cpu").reshape(-1) for numbers in (mean, std))
        self._mean, self._std = (numbers.clone() for numbers in first)
        if self._mean.shape != self._std.shape:
            raise ValueError(f"mean and std should be of one length: found {len(self._mean)} and {len(self._std)}")
        if not (self._mean.isfinite().all() and self._std.isfinite().all() and (self._std > 0).all()):
            raise ValueError(
                f"mean should be finite and std positive: found {self._mean.tolist()} and {self._std.tolist()}; "
                "compute them from training labels that are not NaN"
            )
        self.register_buffer("mean", torch.empty(self._mean.shape, dtype=torch.float32))
        self.register_buffer("std", torch.empty(self._std.shape, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill both buffers (also after a meta device)."""
        self.mean.copy_(self._mean)
        self.std.copy_(self._std)

    def forward(self, output: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (output.dim() - 2)) if output.dim() > 1 else (-1,)
        with torch.autocast(output.device.type, enabled=False):
            return torch.addcmul(self.mean.reshape(shape), self.std.reshape(shape), promote(output))


class HeteroscedasticHead(nn.Module):
    r"""Two heads in one: means (or logits), and the log-variance of each; for heteroscedastic likelihoods.

    .. math::  [\, \mu(x), \; \text{start} + h(x) \,]

    along the channels, in float32 or wider: means may come in grams, by `Rescale`.

    A log-variance that is learnt from the first step calls noise what the mean has not learnt yet, and then keeps it
    from learning. In a burn-in every log-variance is the constant `start`, so that the mean is trained on the plain
    error first. It is counted in training forward passes with gradients (batches, also while gradients accumulate), is
    saved in checkpoints, and meanwhile the constant holds in evaluation, too. The other module has gradients of zero.

    Source: Kendall & Gal, NeurIPS 2017, Section 2.2; a burn-in as Sluijterman et al., "Optimal Training of Mean
    Variance Estimation Neural Networks", Neurocomputing 2024, advise.

    Args:
        mean: from features to means or logits.
        log_variance: from features to one log-variance each.
        start: first log-variance, to which the module adds its own: `2 log(std)` with the deviation of the labels.
        burn_in: how many training passes the log-variances stay `start`.

    Raises:
        ValueError: burn_in is negative or above 2^24, or start is not finite; (in a pass) the two shapes differ.

    Shape:
        What both modules take, to `[B, 2C, ...]`, channels second.

    Example:
        >>> mean = nn.Sequential(nn.Linear(8, 1), Rescale(4207.0, 802.0))
        >>> head = HeteroscedasticHead(mean, nn.Linear(8, 1), start=2 * math.log(802.0), burn_in=100)
        >>> head(torch.ones(5, 8)).shape
        torch.Size([5, 2])
    """

    steps: Tensor

    def __init__(self, mean: nn.Module, log_variance: nn.Module, *, start: float = 0.0, burn_in: int = 0) -> None:
        super().__init__()
        if not 0 <= burn_in <= _MOST_COUNTED:
            raise ValueError(
                f"burn_in should be a number of training passes, from 0 to {_MOST_COUNTED:_}: found {burn_in}"
            )
        if not math.isfinite(start):
            raise ValueError(f"start should be a finite log-variance: found {start}; take 2 log of a deviation above 0")
        self.mean, self.log_variance = mean, log_variance
        self.start, self.burn_in = float(start), burn_in
        self.register_buffer("steps", torch.zeros((), dtype=torch.float32))  # an average of integers stays behind

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Begin the burn-in anew (also after a meta device); the two modules have numbers of their own."""
        self.steps.zero_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HeteroscedasticHead:
        steps = self.steps
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.steps.dtype.is_floating_point and self.steps.dtype.itemsize < steps.dtype.itemsize:
            self.steps = steps.to(self.steps.device)  # half precision cannot count
        return self

    def forward(self, features: Any) -> Tensor:
        mean, log_variance = promote(self.mean(features)), promote(self.log_variance(features))
        if mean.shape != log_variance.shape or mean.dim() < 2:
            raise ValueError(
                f"mean and log_variance should return one shape [B, C, ...]: found {list(mean.shape)} and "
                f"{list(log_variance.shape)}"
            )
        log_variance = self.start + log_variance
        if self.burn_in:
            held = keep_for_backward(self.steps < self.burn_in)
            log_variance = torch.where(held, self.start, log_variance)
            if self.training and torch.is_grad_enabled():
                self.steps.add_(1)
        return torch.cat([mean, log_variance], dim=1)

    def extra_repr(self) -> str:
        """Return the numbers that were given."""
        return f"start={self.start:g}, burn_in={self.burn_in}"
