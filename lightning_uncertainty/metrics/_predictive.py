"""What metrics of predictive distributions start from: errors of observed labels, and sums that lose no digits."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_uncertainty._tensors import promote, reads_values

__all__ = ["Distribution", "add", "check_distribution", "observed_errors"]

Distribution = Literal["gaussian", "laplace"]


def check_distribution(distribution: str) -> None:
    """Raise ValueError where there is no such distribution."""
    if distribution not in ("gaussian", "laplace"):
        raise ValueError(
            f"distribution should be 'gaussian' or 'laplace': found {distribution!r}; name the likelihood of the task"
        )


def observed_errors(mean: Tensor, std: Tensor, target: Tensor, *, positive: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return errors, standard deviations and which labels are observed, all of the shape of `target`.

    Where a label is NaN, the error is 0 and the standard deviation 1.

    Raises:
        ValueError: shapes do not fit, or the standard deviation of an observed label is NaN, negative or, where it
            should be positive, zero (eager CPU).
    """
    if mean.shape != target.shape:
        raise ValueError(
            f"mean should have the shape of target {list(target.shape)}: found {list(mean.shape)}; reshape one of them"
        )
    if std.dim() > target.dim() or any(
        own not in (1, whole) for own, whole in zip(reversed(std.shape), reversed(target.shape), strict=False)
    ):
        raise ValueError(
            f"std should have the shape of target {list(target.shape)} or broadcast to it: found {list(std.shape)}; "
            "reshape it"
        )
    observed = ~target.isnan()
    error = torch.where(observed, promote(mean) - promote(target), 0.0)
    std = torch.where(observed, promote(std), 1.0)
    if reads_values(std):
        wrong = ~(std > 0) if positive else ~(std >= 0)
        if wrong.any():
            raise ValueError(
                f"std should be {'positive' if positive else 'zero or positive'}: found {std[wrong][0].item():g} in "
                f"{int(wrong.sum())} of {std.numel()} places; give standard deviations, such as exp(log_variance / 2)"
            )
    return error, std, observed


def add(pair: Tensor, value: Tensor) -> Tensor:
    """Return a sum and what rounding has left out of it `[2, ...]`, after another value `[...]` (Knuth's TwoSum).

    Pairs add up over ranks as sums do. Digits survive millions of updates without float64, which MPS lacks.
    """
    value = value.to(pair)
    total = pair[0] + value
    added = total - pair[0]
    left = (pair[0] - (total - added)) + (value - added)
    return torch.stack([total, pair[1] + torch.where(total.isfinite(), left, 0.0)])
