"""Squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_uncertainty.likelihoods._base import Predictive
from lightning_uncertainty.likelihoods._elementwise import Elementwise

__all__ = ["Gaussian"]


@dataclass(frozen=True)
class Gaussian(Elementwise, name="gaussian"):
    """Squared error under `N(f, σ²)`; Kendall et al., CVPR 2018, Eq. 5.

    `J = ½ e^{-s} L + ½ s` with `L` the mean squared error. At the optimum σ = `e^{s/2}` is the root mean squared
    residual, in label units.

    Example:
        >>> import torch
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
