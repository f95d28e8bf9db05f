"""Deviance of counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_uncertainty.likelihoods._base import Predictive
from lightning_uncertainty.likelihoods._elementwise import Elementwise
from lightning_uncertainty.likelihoods._labels import range_of

__all__ = ["Poisson"]


@dataclass(frozen=True)
class Poisson(Elementwise, name="poisson"):
    """Unit deviance of counts, the head giving the log-rate `f`.

    `D = 2 [y log(y / μ) - (y - μ)]` with `μ = e^f`, and `J = ½ e^{-s} L + ½ s` with `L` the mean deviance: the extended
    quasi-likelihood of Nelder & Pregibon (Biometrika 1987). `e^s` at the optimum is the dispersion (1 where the
    counts are Poisson). `torch.nn.PoissonNLLLoss` drops the terms in `y` and can be negative: never weigh that.

    Example:
        >>> total, count = Poisson().loss(torch.tensor([3.0]).log(), torch.tensor([3.0]))
        >>> round(total.item(), 6)
        0.0
    """

    factor: ClassVar[float] = 0.5
    meaning: ClassVar[str] = "√deviance [-]"
    predictive: ClassVar[Predictive] = "gaussian"

    def check_labels(self, target: Tensor) -> None:
        if (target < 0).any():
            raise ValueError(
                f"labels of a {self.name} task should be counts, at least 0: found {range_of(target)}; mark missing "
                "ones by NaN or a mask"
            )

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        positive = target > 0
        # with d = f - log y the deviance is 2 y (e^d - 1 - d): no difference of large numbers; y = 0 gives 2 e^f
        d = torch.where(positive, output - torch.where(positive, target, 1.0).log(), 0.0)
        return 2 * torch.where(positive, target * (d.expm1() - d), torch.where(positive, 0.0, output).exp())

    def mean(self, output: Tensor) -> Tensor:
        return output.exp()

    def variance(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Return `e^s μ`: the variance of a Poisson count times the dispersion."""
        return scale * mean
