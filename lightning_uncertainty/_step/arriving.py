"""Whether gradients of the log-variances arrive in the steps of the optimizer that holds them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_uncertainty._step.trainers import FitState

__all__ = ["warn_where_none_arrive"]

MOST = 10
"""Steps without a gradient, in a row at the start."""


def warn_where_none_arrive(optimizers: Iterable[Any], own: Sequence[nn.Parameter], fit: FitState) -> None:
    """Warn of log-variances that the first steps of their optimizer find without gradient, though losses were weighed.

    So it is where several optimizers step, and another one's backward is the total's, or where what a step minimises
    is not what `weigh` returned. Nothing is looked at once a gradient was there.

    Args:
        optimizers: those of the Trainer.
        own: the log-variances.
        fit: the module's.
    """
    ids = {id(parameter) for parameter in own if parameter.requires_grad}
    for number, optimizer in enumerate(optimizers, 1):
        held = (id(parameter) for group in optimizer.param_groups for parameter in group["params"])
        if isinstance(optimizer, Optimizer) and optimizer not in fit.watched and not ids.isdisjoint(held):
            fit.watched.add(optimizer)
            _Watch(optimizer, own, fit, f"number {number}, {type(optimizer).__name__}")


class _Watch:
    """Looks at every step of an optimizer until it knows; a hook that is removed while hooks run would stop them."""

    def __init__(self, optimizer: Optimizer, own: Sequence[nn.Parameter], fit: FitState, named: str) -> None:
        self._own, self._fit, self._named, self._left = own, fit, named, MOST
        optimizer.register_step_post_hook(self._look)  # before a step its closure has not run

    def _look(self, *_: Any) -> None:
        if not self._left:
            return
        if any(parameter.grad is not None for parameter in self._own):
            self._left = 0
        elif not (self._fit.begins or self._fit.skip is not None or self._fit.held):
            self._left -= 1
            if not self._left:
                warnings.warn(
                    "the log-variances should have a gradient where their optimizer steps, or σ stays where it is: "
                    f"found none in {MOST} steps of optimizer {self._named}; minimise what `weigh` returned, and where "
                    "several optimizers step, put them into the one that steps with it: `beside=` of `adopt` and "
                    "`own_group` names a module whose parameters it holds",
                    stacklevel=2,
                )
