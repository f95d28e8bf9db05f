"""What classes and events with focal errors have in common."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from lightning_uncertainty._tensors import is_number
from lightning_uncertainty.likelihoods._base import Likelihood

__all__ = ["check_focal", "power"]


def check_focal(likelihood: Likelihood, focal: float | None) -> None:
    """Have a likelihood with focal errors say so.

    Raises:
        ValueError: the exponent is negative or not finite.
    """
    if focal is not None and not (is_number(focal) and 0 <= focal < inf):
        raise ValueError(f"focal should be an exponent, finite and at least 0: found {focal!r}")
    if focal:
        object.__setattr__(likelihood, "meaning", f"{type(likelihood).meaning.removesuffix(' [-]')}, focal [-]")


def power(probability: Tensor, exponent: float) -> Tensor:
    """Return a power whose gradient is finite at 0."""
    return probability.clamp(min=torch.finfo(torch.float32).tiny).pow(exponent)
