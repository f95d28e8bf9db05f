"""A task trained alone, in a network of many."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning_uncertainty.architectures import BranchingArchitecture
from lightning_uncertainty.mixin import MultiTaskMixin
from lightning_uncertainty.module import MultiTaskSteps

__all__ = ["train_alone"]


def train_alone(module: Any, task: str) -> None:
    """Have a module train one of its tasks, and its constant terms, as if batches had no labels of the others.

    Heads of the others are not computed in training, where the tasks own them, or the ready module has an architecture
    whose tasks do not meet again, unless one of the user's own methods may look at all of them. In evaluation all is as
    it was.
    """
    whole = module._task_specs
    kinds = module.task_likelihoods()
    kept = {name: given for name, given in whole.items() if name == task or kinds[name].constant}
    training_step, step, weigh = module.training_step, module.task_step, module.weigh
    own = type(module)
    net: Any = getattr(module, "backbone", None)
    sparing = _inherits(own, MultiTaskMixin, "task_outputs", "task_losses")
    branching = (
        isinstance(net, BranchingArchitecture)
        and _inherits(own, MultiTaskSteps, "training_step", "forward")
        and _inherits(type(net), BranchingArchitecture, "forward", "predict", "decode")
    )

    def of_kept(made: Any) -> Any:
        return {name: made[name] for name in kept if name in made} if isinstance(made, Mapping) else made

    @functools.wraps(training_step)
    def train(*given: Any, **named: Any) -> Any:
        with _other(net, "predictions", of_kept(net.predictions)):
            return training_step(*given, **named)

    def task_step(features: Any, batch: Any, stage: str, **options: Any) -> Any:
        if stage != "train" or not sparing:
            return step(features, batch, stage, **options)
        if not module.task_heads:
            features = of_kept(features)
        with _other(module, "_task_specs", kept):
            return step(features, batch, stage, **options)

    def weigh_kept(losses: Any, stage: str | None = None) -> Any:
        with _other(module, "_task_specs", whole):
            if stage == "train" or (stage is None and module.trainer.training):
                losses = {name: losses.get(name) if name in kept else None for name in whole}
            return weigh(losses, stage=stage)

    module.task_step, module.weigh = task_step, weigh_kept
    if sparing and branching:
        module.training_step = train


def _inherits(kind: type, base: type, *names: str) -> bool:
    """Whether a class has methods from its base as they are there."""
    return issubclass(kind, base) and all(getattr(kind, name) is getattr(base, name) for name in names)


@contextmanager
def _other(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Have an attribute be another for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
