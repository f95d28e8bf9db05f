"""The contract of a likelihood `J = c e^{-a s} L + r s`, and its optimum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import inf, log
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_uncertainty._tensors import Loadable
from lightning_uncertainty.likelihoods._labels import align
from lightning_uncertainty.likelihoods.prediction import Prediction

__all__ = ["Likelihood", "Predictive", "check_likelihood", "optimal_log_variance"]


def check_likelihood(likelihood: Likelihood) -> None:
    """Look whether a likelihood says what a weighting needs to know.

    Raises:
        ValueError: it does not.
    """
    kind = type(likelihood).__name__
    if getattr(likelihood, "meaning", None) is None:
        raise ValueError(
            f"a likelihood should say what its σ is: found no meaning of {kind}; write what e^(s/2) is at the optimum, "
            'and its unit, as `meaning = "RMSE [label]"`'
        )
    numbers = {name: getattr(likelihood, name, None) for name in ("factor", "exponent", "penalty")}
    wanted = {"factor": 1.0, "exponent": 0.0, "penalty": 0.0} if likelihood.normalised else {}
    for name, number in numbers.items():
        right = isinstance(number, int | float) and (number == wanted[name] if wanted else 0 < number < inf)
        if not right:
            rule = f"be {wanted[name]:g}, as it is normalised" if wanted else "be a positive number"
            raise ValueError(
                f"the {name} of {kind} in c e^(-a s) L + r s should {rule}: found {number}; a loss that has no scale "
                "to learn is `normalised = True`, with factor 1, exponent 0 and penalty 0"
            )


def optimal_log_variance(loss: Tensor, exponent: Tensor, log_ratio: Tensor) -> Tensor:
    """Return `s* = log(a c L / r) / a`, the minimum of `c e^{-a s} L + r s`; a zero loss counts as float32's tiny.

    Args:
        loss: `L`.
        exponent: `a`; where 0, there is no scale to learn and `s*` is 0.
        log_ratio: `log(a c / r)`.

    Example:
        >>> optimal_log_variance(torch.tensor(4.0), torch.tensor(1.0), torch.tensor(0.0)).exp()  # Gaussian: σ² = MSE
        tensor(4.)
    """
    optimum = (loss.clamp(min=torch.finfo(torch.float32).tiny).log() + log_ratio) / exponent
    return torch.where(exponent > 0, optimum, 0.0)


Predictive = Literal["gaussian", "laplace", "classes", "event", "mean"]


@dataclass(frozen=True)
class Likelihood(Loadable, ABC):
    """Residual loss of a task, its term in the log-variance, and what `e^s` means.

    Attributes:
        factor: `c` in `c e^{-a s} L + r s`.
        exponent: `a`.
        penalty: `r`.
        meaning: what σ = `e^{s/2}` is at its optimum, and its unit: [label] the label's, [-] none.
        normalised: whether the loss is a negative log-likelihood whose scale the output holds. The numbers above are
            then 1, 0 and 0: the task has weight one, no `s`, and a loss that may be negative.
        constant: whether it is no task but a term beside them, whose weight stays its base weight.
        predictive: what `predicted` states of a label: a density with σ, a class, an event, or a mean alone.
    """

    factor: ClassVar[float]
    exponent: ClassVar[float] = 1.0
    penalty: ClassVar[float] = 0.5
    meaning: ClassVar[str]
    normalised: ClassVar[bool] = False
    constant: ClassVar[bool] = False
    predictive: ClassVar[Predictive] = "mean"
    _name: ClassVar[str]

    def __init_subclass__(cls, name: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._name = name or cls.__name__

    @property
    def needs_sigma(self) -> bool:
        """Whether `predicted` takes the aleatoric uncertainty from the task's log-variance."""
        return self.predictive in ("gaussian", "laplace") and not self.normalised

    @property
    def name(self) -> str:
        """The word by which `LIKELIHOODS` knows this likelihood; the name of the class of one of your own."""
        return self._name

    @property
    def log_ratio(self) -> float:
        """The constant `log(a c / r)` of the optimum; 0 where there is none."""
        return 0.0 if self.normalised else log(self.exponent * self.factor / self.penalty)

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the residual loss summed over the observed scalars, and their count.

        Args:
            output: what the head returns, `[B, ...]`.
            target: labels; a missing label is NaN (class indices: `ignore_index`) or False in `mask`.
            mask: True where a label is observed; see `masked_sum` for its shapes.

        Returns:
            `(sum, count)` in float32 or wider; `sum / count` is the `L` of the formula.

        Raises:
            ValueError: shape, dtype or (on eager CPU) value of the labels is not what the likelihood needs.
        """

    @abstractmethod
    def observed(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return predictions in label space and labels of the observed scalars only, flat: what metrics are given.

        Returns:
            Predictions `[N]`, or class probabilities `[N, C]`, and labels `[N]`.
        """

    def aligned(
        self, output: Tensor, target: Tensor | None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return predictions in label space, labels and where these are observed: what metrics of rows and images need.

        Args:
            output: what the head returns, `[B, ...]`.
            target: labels; None where none is observed.
            mask: True where a label is observed; see `masked_sum` for its shapes.

        Returns:
            Predictions `[B, ...]` of the output's shape, or class probabilities `[B, C, ...]`; labels of that shape,
            those of classes `[B, ...]`; and a mask of the labels' shape.

        Raises:
            NotImplementedError: the likelihood is one of your own that has `observed` alone.
        """
        raise NotImplementedError(f"{type(self).__name__}.aligned: see Likelihood.aligned")

    @abstractmethod
    def predicted(self, outputs: Tensor, log_variance: Tensor, correction: Tensor) -> Prediction:
        """Return what outputs say of a label, and how sure they are.

        Args:
            outputs: what the head returned in S passes, or those of S models, `[S, B, ...]`.
            log_variance: `s` of the task, 0-dimensional, or what broadcasts to the outputs, as one for each of S models
                `[S, 1, ...]`. Where it is NaN, so are the aleatoric and the total uncertainty of a density.
            correction: what recalibration found, likewise: a factor on σ, or a temperature that divides the logits of
                classes and events; 1 is none.
        """

    def paired(self, prediction: Prediction, target: Tensor, mask: Tensor | None = None) -> tuple[Prediction, Tensor]:
        """Return a prediction and the labels of the observed scalars only, flat.

        Returns:
            A prediction of tensors `[N]`, the mean `[N, C]` for classes, and labels `[N]`.

        Raises:
            ValueError: shape or dtype of the labels is not what the likelihood needs.
        """
        aligned = [align(self.name, part, target, mask) for part in prediction]
        _, labels, there = aligned[0]
        return Prediction(*(part[there] for part, _, _ in aligned)), labels[there]

    def outputs_of(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return outputs `[N]` or `[N, channels]` and labels `[N]` of the observed scalars only, flat."""
        output, target, there = align(self.name, output, target, mask)
        return output[there], target[there]

    def optimum(self, loss: float) -> float:
        """Return the log-variance that minimises the term of a mean loss.

        Example:
            >>> from lightning_uncertainty.likelihoods import Categorical
            >>> round(Categorical().optimum(0.5), 6) + 0.0  # e^s = 2 CE = 1
            0.0
        """
        numbers = torch.tensor([loss, self.exponent, self.log_ratio], dtype=torch.float64)
        return float(optimal_log_variance(*numbers.unbind()))
