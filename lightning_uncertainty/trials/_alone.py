"""A task trained alone, in a network of many."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning_uncertainty.architectures import BranchingArchitecture
from lightning_uncertainty.module import MultiTaskSteps

__all__ = ["train_alone"]


def train_alone(module: Any, task: str) -> None:
    """Have a module train one of its tasks, and its constant terms, as if batches had no labels of the others.

    Heads of the others are not computed in training, where the tasks own them, or the ready module has an architecture
    whose tasks do not meet again. In evaluation all is as it was.
    """
    whole = module._tasks
    kinds = module.task_likelihoods()
    kept = {name: given for name, given in whole.items() if name == task or kinds[name].constant}
    training_step, step, losses_of, weigh = module.training_step, module.task_step, module.task_losses, module.weigh
    branches = isinstance(module, MultiTaskSteps) and isinstance(module.backbone, BranchingArchitecture)

    def of_kept(made: Any) -> Any:
        return {name: made[name] for name in kept if name in made} if isinstance(made, Mapping) else made

    def losses_of_kept(outputs: Any, batch: Any) -> Any:
        return losses_of(of_kept(outputs), batch)

    @functools.wraps(training_step)
    def train(*given: Any, **named: Any) -> Any:
        with _each([(module.backbone, "predictions", of_kept(module.backbone.predictions))]):
            return training_step(*given, **named)

    def task_step(features: Any, batch: Any, stage: str, **options: Any) -> Any:
        if stage != "train":
            return step(features, batch, stage, **options)
        if not module.task_heads:
            features = of_kept(features)
        with _each([(module, "_tasks", kept), (module, "task_losses", losses_of_kept)]):
            return step(features, batch, stage, **options)

    def weigh_kept(losses: Any, stage: str | None = None) -> Any:
        with _each([(module, "_tasks", whole)]):
            if stage == "train" or (stage is None and module.trainer.training):
                losses = {name: losses.get(name) if name in kept else None for name in whole}
            return weigh(losses, stage=stage)

    module.task_step, module.weigh = task_step, weigh_kept
    if branches and type(module).training_step is MultiTaskSteps.training_step:  # another may look at all of them
        module.training_step = train


@contextmanager
def _each(values: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Have attributes of objects be others for a while."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in values]
    try:
        for owner, name, value in values:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
