"""The contract of a weighting.

Long, but one file: it is what a method may rely on, and the mixin calls.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_uncertainty._tensors import by_name, promote
from lightning_uncertainty.likelihoods import Likelihood, optimal_log_variance
from lightning_uncertainty.weightings._blend import Blend
from lightning_uncertainty.weightings._contract import as_weighted, filling
from lightning_uncertainty.weightings._named import kinds_of, named_vector
from lightning_uncertainty.weightings._task_vectors import TaskVectors
from lightning_uncertainty.weightings._weighted import Weighted

__all__ = ["Weighting"]

Self = TypeVar("Self", bound="Weighting")

_ENDLESS = 1e38  # in place of infinity in constants, of which a mean of buffers makes NaN


class Weighting(TaskVectors, ABC):
    """T task losses -> one scalar.

    A weighting is built without knowing the tasks and bound to them once, by `register_tasks`. From then on everything
    it knows is a vector `[T]` in the order of registration: what it learns is a parameter, what it remembers a buffer.
    It stays float32 (float64 in a double model), runs without autocast, and changes its state only in training mode
    with gradients enabled. Its checkpoints know tasks by name, so that tasks may be reordered, added or removed.

    Args:
        base_weights: a constant factor on a task's whole term, by task name; others have 1. 0 switches a task off and
            freezes what the weighting knows of it.
        options: what else the method was given; its `repr` shows those that are neither None nor empty.

    Attributes:
        log_variance: the log-variances of the last training step `[T]`, NaN before a task's start; None for a
            weighting without them.
        blend: what `blend_from` began; None else.
        closed_form: whether the weights that `forward` returns are all there is; else gradients decide in backward.
        takes_normalised: whether it gives tasks of a normalised likelihood a weight without an `s`, and takes losses
            that are negative.
        normalised: the names of such tasks.
        takes_constant: whether it leaves a term of the likelihood `Constant` its base weight.
        constant: the names of such terms, which are among the normalised.
        needs_epoch: whether `weigh` of the mixin tells the epoch, through `start_epoch`.
        ranks_sizes: whether losses compete by their sizes, so that the units of labels decide.
    """

    exponent: Tensor  # a
    log_ratio: Tensor  # log(a c / r)
    log_factor: Tensor  # log(b c), with the base weight b
    base_penalty: Tensor  # b r
    base_weight: Tensor  # b
    learnable: Tensor  # b, 0 where a likelihood is normalised and there is no s
    log_variance: Tensor | None
    needs_epoch = False
    ranks_sizes = False
    closed_form = True
    takes_normalised = False
    takes_constant = False

    def __init__(self, base_weights: Mapping[str, float] | None = None, **options: object) -> None:
        super().__init__()
        self._base_weights = by_name(base_weights, "base_weights")
        self._options = {**options, "base_weights": self._base_weights}
        self._meanings: dict[str, str] = {}
        self.normalised: tuple[str, ...] = ()
        self.constant: tuple[str, ...] = ()
        self._constants: dict[str, Any] = {}  # what each constant buffer holds, to the last digit
        self.blend: Blend | None = None
        self.register_buffer("log_variance", None)

    if not TYPE_CHECKING:  # the class has a name as ever

        @property
        def __name__(self) -> str:
            """What loggers show of a hyper-parameter that can be called."""
            return self._shown()

    def bind(self: Self, tasks: Mapping[str, Likelihood]) -> Self:
        """Make the vectors for these tasks; called once, by `register_tasks`.

        Raises:
            ValueError: the weighting belongs to tasks already, a name given to it is no task, or a likelihood is
                normalised, or that of a constant term, where the weighting takes none; or a weighting of your own does
                not keep the contract.
            TypeError: its `weigh` does not return a `Weighted`.
            RuntimeError: its `__init__` does not call that of the base class.
        """
        if "_base_weights" not in vars(self):
            kind = type(self).__name__
            raise RuntimeError(f"{kind}.__init__ should begin with super().__init__(): found that it never calls it")
        if self.tasks:
            raise ValueError(
                f"a weighting belongs to one module: found one bound to {', '.join(self.tasks)}; build a new one"
            )
        names = tuple(tasks)
        normalised, constant = kinds_of(self, tasks)
        base = named_vector(self._base_weights, names, 1.0, "base_weights", minimum=0.0)
        self.tasks, self.normalised, self.constant = names, normalised, constant
        self._meanings = {name: kind.meaning for name, kind in tasks.items()}
        likelihoods = tasks.values()
        self.add_constant("exponent", (kind.exponent for kind in likelihoods))
        self.add_constant("log_ratio", (kind.log_ratio for kind in likelihoods))
        self.add_constant("base_weight", base)
        self.add_constant("learnable", (b * (not kind.normalised) for b, kind in zip(base, likelihoods, strict=True)))
        factors = (b * kind.factor for b, kind in zip(base, likelihoods, strict=True))
        self.add_constant("log_factor", (math.log(factor) if factor else -math.inf for factor in factors))
        self.add_constant("base_penalty", (b * kind.penalty for b, kind in zip(base, likelihoods, strict=True)))
        self.register_names()
        self.make_vectors()
        with filling(self):
            self.reset_parameters()
        return self

    def add_constant(self, name: str, values: Iterable[Any]) -> None:
        """Register a buffer `[T]` or `[T, T]` that never changes and is in no checkpoint."""
        self._constants[name] = tuple(values)
        shape = torch.tensor(self._constants[name], device="cpu").shape
        self.register_buffer(name, torch.empty(shape, dtype=torch.float32), persistent=False)

    def vector(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return an unfilled vector `[T]`, for `make_vectors`."""
        return torch.empty(len(self.tasks), dtype=dtype)

    def make_vectors(self) -> None:
        """Register the weighting's own parameters and buffers, unfilled; `reset_parameters` fills them."""

    @property
    def first_epoch(self) -> int:
        """The first epoch, from 0, in which it does what it is named for; 0 once it can in a fit anew."""
        return 0

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fill every parameter and every buffer with its first value (also after a meta device)."""
        self.fill_names()
        self._fill_constants()
        if self.log_variance is not None:
            self.log_variance.fill_(torch.nan)

    def _fill_constants(self) -> None:
        for name, values in self._constants.items():
            buffer: Tensor = getattr(self, name)
            buffer.copy_(torch.tensor(values, dtype=buffer.dtype).clamp(-_ENDLESS, _ENDLESS))

    def check_tasks(self) -> None:
        """Look at the tasks of a checkpoint, and undo what an average of buffers has made of constants."""
        super().check_tasks()
        self._fill_constants()

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._fill_constants()  # a constant cast from float32 to float64 would keep float32's digits
        if self.blend is not None:
            self.blend.move(self.base_weight)
        return self

    def forward(self, losses: Tensor, present: Tensor) -> Weighted:
        """Weigh losses `[T]`; `present` `[T]` is True where a task has labels (elsewhere any finite loss will do).

        Raises:
            ValueError: not one loss per task, or the weighting is not bound to tasks.
        """
        if losses.shape != (len(self.tasks),) or not self.tasks:
            raise ValueError(
                f"a weighting takes one loss for each of its {len(self.tasks)} tasks: found shape {list(losses.shape)}"
                + ("" if self.tasks else "; bind it to tasks first (register_tasks does)")
            )
        device = "cpu" if losses.is_cpu else losses.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.forward(losses, present)
        losses = promote(losses)
        weighted = as_weighted(self.weigh(losses, present), type(self).__name__)
        if self.learning:
            if self.blend is not None:
                total, weights = self.blend(weighted.total, weighted.weights, losses, present)
                weighted = Weighted(total, weights, weighted.log_variances)
            own = self._buffers["log_variance"]
            if own is not None and weighted.log_variances is not None:
                own.copy_(weighted.log_variances)
        return weighted

    @abstractmethod
    def weigh(self, losses: Tensor, present: Tensor) -> Weighted:
        """Return total, effective weights and log-variances; losses are float32 or wider."""

    def blend_from(self, weights: Mapping[str, float] | None) -> None:
        """Train on fixed weights, by task name, others 1, from which `blend.share` leads to the own; None ends it.

        Evaluation has the weighting's own total and weights all the time, and checkpoints know nothing of it.

        Raises:
            ValueError: a name is no task, or a weight is not finite or negative.
        """
        if weights is None:
            self.blend = None
        else:
            self.blend = Blend(named_vector(weights, self.tasks, 1.0, "blend_from", minimum=0.0), self.base_weight)

    def start_epoch(self, epoch: int) -> None:
        """Take note of the epoch that a training step belongs to."""

    def observe(self, kpi: Tensor) -> None:
        """Take note of the tasks' key performance indicators `[T]`, where the weighting follows them."""

    def count_labels(self, labels: Tensor) -> None:
        """Take note of how many labels the next losses are means of, `[T]`; infinite where nobody knows."""

    def kpi_metrics(self) -> Mapping[str, Metric]:
        """Return the metrics, by task name, whose values of a training batch the weighting wants to hear."""
        return {}

    def hearing(self, kpi: Tensor) -> AbstractContextManager[None]:
        """Return a context within which a training step hears the values `[T]` of its batch."""
        return nullcontext()

    def settle(self) -> None:
        """Read from the device what steps need not ask again; called where a read is free, as on logging steps."""

    def trunk_weights(self, weights: Tensor) -> Tensor:
        """Return by what a step's losses pull at the shared features, `[T]`, from their effective weights."""
        return weights

    def optimum(self, losses: Tensor, steps: Tensor | None = None) -> Tensor | None:
        """Return the closed-form log-variance `[T]` of constant losses `[T]`, where the weighting has any.

        `steps` `[T]` says in how many steps each task was present, for weightings in which tasks share something; None
        is once each.
        """
        if self.log_variance is None:
            return None
        return optimal_log_variance(promote(losses), self.exponent, self.log_ratio)

    def meanings(self) -> dict[str, str]:
        """Return what σ is at its optimum, and its unit, by task.

        A weighting without log-variances has that of normalised tasks alone, whose σ is their heads'.
        """
        return {
            name: self._meanings[name] for name in (self.tasks if self.log_variance is not None else self.normalised)
        }

    def extra_repr(self) -> str:
        """Return the options that were given."""
        return ", ".join(f"{name}={value!r}" for name, value in self._options.items() if value not in (None, {}, ()))

    def powers(self) -> list[float]:
        """Return by what tasks count in the balanced loss: log-losses `b r / a`, normalised ones `b`, constants 0."""
        numbers = (self._constants[name] for name in ("base_penalty", "exponent", "base_weight"))
        powers = zip(self.tasks, *numbers, strict=True)
        return [penalty / a if a else base * (name not in self.constant) for name, penalty, a, base in powers]

    def roots(self, losses: Tensor) -> Tensor:
        """Return `√L` `[T]`, or `√|L|` of normalised tasks: not finite where a loss is unsound."""
        return (torch.where(self.exponent > 0, losses, losses.abs()) if self.normalised else losses).sqrt()

    def usable(self, losses: Tensor, present: Tensor) -> Tensor:
        """Where a loss tells anything about the optimum: there is one, the task is on, the loss positive and finite."""
        losses = losses * (present * self.learnable)
        return (losses > 0) & (losses < torch.inf)
