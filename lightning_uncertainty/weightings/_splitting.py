"""How a weighting comes by the gradients that the tasks' losses have with respect to the shared features."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_uncertainty._tensors import SideGroup
from lightning_uncertainty.weightings._fork import Fork
from lightning_uncertainty.weightings._task_vectors import TaskVectors

__all__ = ["Splitting", "Step", "Watched"]


class Step(NamedTuple):
    """What a training step made of its losses.

    Attributes:
        total: the weighted total.
        losses: mean losses of the global batch, `[T]`.
        weights: effective weights `[T]`.
        parts: what the losses were made of, by task: the sum or mean that was given, where it has a gradient.
        shared: trained parameters that the tasks share; these and the next two only where the weighting needs them.
        others: all others, but for the weighting's own.
        own: the weighting's own.
    """

    total: Tensor
    losses: Tensor
    weights: Tensor
    parts: Mapping[str, Tensor]
    shared: Sequence[nn.Parameter] = ()
    others: Sequence[nn.Parameter] = ()
    own: Sequence[nn.Parameter] = ()


class Watched(NamedTuple):
    """What a watched backward found.

    Attributes:
        gramian: of the gradients that reach the shared features from each task, `[T, T]`; that of the global batch.
        weights: what these were multiplied by on their way into the trunk, `[T]`.
    """

    gramian: Tensor
    weights: Tensor


class Splitting(TaskVectors):
    """Splits the shared features where somebody wants to know the tasks' gradients; elsewhere they pass unchanged.

    Attributes:
        balances: whether every training step needs them split.
        needs_parameters: whether a step has to tell which parameters the tasks share.
        watching: whether training steps split them until further notice, for `watched`.
        watched: what the latest such backward found.
    """

    balances = False
    needs_parameters = False

    def __init__(self) -> None:
        super().__init__()
        self.watching = False
        self.watched: Watched | None = None
        self._fork: Fork | None = None
        self._side_group = SideGroup()
        self._warned = False

    @property
    def learning(self) -> bool:
        """Whether this call may change state: training mode with gradients."""
        return self.training and torch.is_grad_enabled()

    @property
    def splits(self) -> bool:
        """Whether a training step splits the features now."""
        return self.balances or self.watching

    def split(self, features: Any, tasks: Sequence[str]) -> dict[str, Any]:
        """Return the shared features for each of these tasks' heads: a tensor, or tuples and mappings of tensors."""
        return self._split(features, tasks) if self.splits and self.learning else dict.fromkeys(tasks, features)

    @torch.compiler.disable
    def _split(self, features: Any, tasks: Sequence[str]) -> dict[str, Any]:
        self._fork = Fork(self.tasks, self._take, strict=self.balances)
        return self._fork.branch(features, tasks)

    def record(self, step: Step) -> Tensor:
        """Return the total to start backward from, which will bring the tasks' gradients to `take_gramian`.

        Raises:
            RuntimeError: no features were split for this step, so the tasks' gradients would not be seen.
        """
        fork, self._fork = self._fork, None
        self._side_group.prepare()
        if fork is None:
            return self.without_fork(step)
        if not fork.tensors:
            self._warn_of_frozen()
            return step.total
        fork.trained = frozenset(step.parts)
        return self.with_fork(fork, step)

    def _warn_of_frozen(self) -> None:
        if self.balances and not self._warned:
            self._warned = True
            warnings.warn(
                f"the shared features have no gradient, so {type(self).__name__} has nothing to balance and the losses "
                "are summed as they are: unfreeze the trunk, or use a weighting of losses",
                stacklevel=2,
            )

    def without_fork(self, step: Step) -> Tensor:
        """Return the total where no features were split."""
        if not self.balances:
            return step.total
        raise RuntimeError(
            f"{type(self).__name__} should see the shared features: found losses computed without; use task_outputs "
            "or task_step, or give each head split_features(features)[task]; where tasks exchange features, so that "
            'there is no such place, use GradientBalancing(on="parameters")'
        )

    def with_fork(self, fork: Fork, step: Step) -> Tensor:
        """Return the total, tied to a fork of this step."""
        tied: Tensor = _Noted.apply(fork, step.total, fork.outputs[0])  # type: ignore[no-untyped-call]
        return tied

    def take_gramian(self, gramian: Tensor) -> Tensor | None:
        """Return what to weigh the tasks' gradients by, `[T]`, from their Gramian `[T, T]`; None is their sum."""
        return None

    def _take(self, gramian: Tensor) -> Tensor | None:
        """Take the Gramian of this process's gradients."""
        return self.settle_on(self._side_group.all_reduced(gramian))

    def settle_on(self, gramian: Tensor) -> Tensor | None:
        """Take the Gramian of all processes."""
        weights = self.take_gramian(gramian)
        if self.watching:
            self.watched = Watched(gramian, torch.ones_like(gramian[0]) if weights is None else weights)
        return weights


class _Noted(torch.autograd.Function):
    """The total as it is; in backward the fork learns the scale, and is reached even where no head ran."""

    @staticmethod
    def forward(ctx: Any, fork: Fork, total: Tensor, branch: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.fork = fork
        return total.view_as(total)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        ctx.fork.note_scale(gradient)
        return None, gradient, None
