"""A normalised likelihood as any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_uncertainty.likelihoods._base import Likelihood
from lightning_uncertainty.likelihoods.prediction import Prediction

__all__ = ["AsGeneric"]


@dataclass(frozen=True)
class AsGeneric(Likelihood):
    """A normalised likelihood whose loss is weighed by an `s` of the task, as any loss is.

    `J = ½ e^{-s} L + ½ s`, in which `e^s` at the optimum is `L` itself: a scale on top of the head's own, which says
    nothing of the data. It is for whoever wants a weighting to balance such a loss with others, or takes a weighting
    that weighs every loss. As any loss, it must then not be negative.

    Args:
        likelihood: the normalised one.

    Raises:
        ValueError: the likelihood is not normalised, or a constant term.

    Example:
        >>> import torch
        >>> from lightning_uncertainty.likelihoods import HeteroscedasticGaussian
        >>> AsGeneric(HeteroscedasticGaussian()).loss(torch.tensor([[1.0, 0.0]]), torch.tensor([3.0]))
        (tensor(2.), tensor(1.))
    """

    likelihood: Likelihood
    factor: ClassVar[float] = 0.5
    meaning: ClassVar[str] = "√loss [-]"

    def __post_init__(self) -> None:
        if not isinstance(self.likelihood, Likelihood) or not self.likelihood.normalised or self.likelihood.constant:
            raise ValueError(
                f"a likelihood within AsGeneric should be normalised and of a task: found {self.likelihood!r}; "
                "give it as it is"
            )
        object.__setattr__(self, "predictive", self.likelihood.predictive)

    @property
    def needs_sigma(self) -> bool:
        """Whether `predicted` takes the aleatoric uncertainty from the task's log-variance: it has the head's own."""
        return False

    def loss(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.likelihood.loss(output, target, mask)

    def observed(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.likelihood.observed(output, target, mask)

    def aligned(
        self, output: Tensor, target: Tensor | None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.likelihood.aligned(output, target, mask)

    def paired(self, prediction: Prediction, target: Tensor, mask: Tensor | None = None) -> tuple[Prediction, Tensor]:
        return self.likelihood.paired(prediction, target, mask)

    def outputs_of(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.likelihood.outputs_of(output, target, mask)

    def predicted(self, outputs: Tensor, log_variance: Tensor, correction: Tensor) -> Prediction:
        """Return what the likelihood predicts; `log_variance` is a scale of its loss and no variance."""
        return self.likelihood.predicted(outputs, log_variance, correction)
