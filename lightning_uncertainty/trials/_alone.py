"""A task trained alone, in a network of many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["train_alone"]


def train_alone(module: Any, task: str) -> None:
    """Have a module train one of its tasks, and its constant terms, as if batches had no labels of the others.

    Heads of the others that the tasks own are not computed in training. In evaluation all is as it was.
    """
    whole = module._tasks
    kinds = module.task_likelihoods()
    kept = {name: given for name, given in whole.items() if name == task or kinds[name].constant}
    step, weigh = module.task_step, module.weigh

    @contextmanager
    def with_tasks(tasks: Any) -> Iterator[None]:
        before, module._tasks = module._tasks, tasks
        try:
            yield
        finally:
            module._tasks = before

    def task_step(features: Any, batch: Any, stage: str, **options: Any) -> Any:
        with with_tasks(kept if stage == "train" and module.task_heads else whole):
            return step(features, batch, stage, **options)

    def weigh_kept(losses: Any, stage: str | None = None) -> Any:
        with with_tasks(whole):
            if stage == "train" or (stage is None and module.trainer.training):
                losses = {name: losses.get(name) if name in kept else None for name in whole}
            return weigh(losses, stage=stage)

    module.task_step, module.weigh = task_step, weigh_kept
