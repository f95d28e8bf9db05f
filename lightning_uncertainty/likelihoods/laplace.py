"""Absolute error: the density, and the Gaussian form fed with it."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from torch import Tensor

from lightning_uncertainty.likelihoods._base import Predictive
from lightning_uncertainty.likelihoods._elementwise import Elementwise

__all__ = ["L1Kendall", "Laplace"]


@dataclass(frozen=True)
class Laplace(Elementwise, name="laplace"):
    """Absolute error under a Laplace density of standard deviation σ = √2 b.

    `J = √2 e^{-s/2} L + ½ s` with `L` the mean absolute error: the exact likelihood of what Kendall et al. (CVPR 2018,
    below Eq. 5) call "similarly for a Laplace likelihood". At the optimum σ = √2 · MAE, in label units. `L1Kendall`
    is the literal Gaussian form fed with the same error.

    Example:
        >>> from math import log
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
class L1Kendall(Elementwise, name="l1_kendall"):
    """Absolute error in the Gaussian form, literally as Kendall et al., CVPR 2018, Eq. 7 with their L1 losses.

    `J = ½ e^{-s} L + ½ s` with `L` the mean absolute error. The effective weight at the optimum is `1 / (2 L)`; that of
    `Laplace` is `1 / L` for every Laplace task, so the balance among such tasks is the same and only the meaning of σ
    differs: here it is `e^s`, not σ, that carries the label's unit (`e^s` = MAE). Do not read σ as a deviation.

    Example:
        >>> import torch
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
