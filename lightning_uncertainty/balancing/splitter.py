"""How the gradients that the tasks' losses have come to a weighting that looks at them, and to whoever watches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_uncertainty._tensors import SideGroup
from lightning_uncertainty.balancing._balanced_backward import Scratch, by_parameters, reweighted
from lightning_uncertainty.balancing._base import BalancingWeighting, balancing
from lightning_uncertainty.balancing._fork import Fork
from lightning_uncertainty.balancing.step import Step
from lightning_uncertainty.weightings import Weighting

__all__ = ["Splitter", "Watched"]


class Watched(NamedTuple):
    """What a watched backward found.

    Attributes:
        gramian: of the gradients that reach the shared features from each task, `[T, T]`; that of the global batch.
        weights: what these were multiplied by on their way into the trunk, `[T]`.
    """

    gramian: Tensor
    weights: Tensor


class Splitter:
    """Splits the shared features where somebody wants to know the tasks' gradients; elsewhere they pass unchanged.

    It has no parameters, no buffers and nothing in checkpoints; copies and pickles of it have no group of processes and
    no memory that one step leaves to the next.

    Attributes:
        watching: whether training steps split them until further notice, for `watched`.
        watched: what the latest such backward found.
        warned: whether it was told that the features have no gradient.
    """

    def __init__(self) -> None:
        self.watching = False
        self.watched: Watched | None = None
        self._fork: Fork | None = None
        self._side_group = SideGroup()
        self._scratch = Scratch()
        self.warned = False

    def splits(self, weighting: Weighting) -> bool:
        """Whether a training step splits the features now: not where it looks at parameters."""
        own = balancing(weighting)
        if own is None:
            return self.watching
        return own.on == "features" or (own.heads == "unweighted" and not own.due())

    def balances(self, weighting: Weighting) -> bool:
        """Whether a weighting looks at gradients by itself."""
        return balancing(weighting) is not None

    def needs_parameters(self, weighting: Weighting) -> bool:
        """Whether a step has to tell which parameters the tasks share."""
        own = balancing(weighting)
        return own is not None and own.on == "parameters"

    def records(self, weighting: Weighting) -> bool:
        """Whether a training step has to `record`."""
        return self.splits(weighting) or self.needs_parameters(weighting)

    def split(self, weighting: Weighting, features: Any, tasks: Sequence[str]) -> dict[str, Any]:
        """Return the shared features for each of these tasks' heads: a tensor, or tuples and mappings of tensors."""
        if self.splits(weighting) and weighting.learning:
            split: dict[str, Any] = self._split(weighting, features, tasks)
            return split
        return dict.fromkeys(tasks, features)

    @torch.compiler.disable
    def _split(self, weighting: Weighting, features: Any, tasks: Sequence[str]) -> dict[str, Any]:
        self._fork = Fork(weighting.tasks, strict=balancing(weighting) is not None)
        return self._fork.branch(features, tasks)

    def record(self, weighting: Weighting, step: Step) -> Tensor:
        """Return the total to start backward from, which will bring the tasks' gradients to the weighting.

        Raises:
            RuntimeError: no features were split for this step, so the tasks' gradients would not be seen.
        """
        fork, self._fork = self._fork, None
        own = balancing(weighting)
        self._side_group.prepare()
        if fork is not None:
            if not fork.tensors:
                self._warn_of_frozen(own)
                return step.total
            around = () if own is None else own.constant  # whose gradient is its own, whichever way it takes
            fork.trained = frozenset(step.parts).difference(around)
            fork.take = partial(self._take, own, step.numbers())
        if own is not None:
            return self._balanced(own, fork, step)
        return step.total if fork is None else _tied(fork, step)

    def _balanced(self, weighting: BalancingWeighting, fork: Fork | None, step: Step) -> Tensor:
        if fork is None and weighting.on == "features":
            raise RuntimeError(
                f"{type(weighting).__name__} should see the shared features: found losses computed without; use "
                "task_outputs or task_step, or give each head split_features(features)[task]; where tasks exchange "
                f'features, so that there is no such place, use {type(weighting).__name__}(on="parameters")'
            )
        known = None if weighting.on == "features" or weighting.due() else weighting.known()
        weighting.begin(step)
        if fork is None:
            settle = partial(self._settle, weighting, step.numbers())
            tasks, group = weighting.tasks, self._side_group
            return by_parameters(step, tasks, weighting.heads, group, settle, known, self._scratch)
        if weighting.on == "parameters":  # a step in between
            fork.decided, fork.weights = True, known
        elif weighting.heads == "weighted":
            return reweighted(fork, step, fork.take)
        return _tied(fork, step)

    def _take(self, weighting: BalancingWeighting | None, step: Step, gramian: Tensor) -> Tensor | None:
        """Take the Gramian of this process's gradients."""
        return self._settle(weighting, step, self._side_group.all_reduced(gramian))

    def _settle(self, weighting: BalancingWeighting | None, step: Step, gramian: Tensor) -> Tensor | None:
        """Take the Gramian of all processes."""
        weights = None if weighting is None else weighting.take_gramian(gramian, step)
        if self.watching:
            self.watched = Watched(gramian, torch.ones_like(gramian[0]) if weights is None else weights)
        return weights

    def _warn_of_frozen(self, weighting: BalancingWeighting | None) -> None:
        if weighting is not None and not self.warned:
            self.warned = True
            warnings.warn(
                f"the shared features have no gradient, so {type(weighting).__name__} has nothing to balance and the "
                "losses are summed as they are: unfreeze the trunk, or use a weighting of losses",
                stacklevel=2,
            )


def _tied(fork: Fork, step: Step) -> Tensor:
    """Return the total, tied to a fork of this step."""
    tied: Tensor = _Noted.apply(fork, step.total, fork.outputs[0])  # type: ignore[no-untyped-call]
    return tied


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
