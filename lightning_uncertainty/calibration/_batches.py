"""Held-out batches on a module's device, and what the module takes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lightning_uncertainty.mixin import MultiTaskMixin
from lightning_uncertainty.module import MultiTaskSteps
from lightning_uncertainty.tasks.task import pick

__all__ = ["Inputs", "batches"]

Inputs = str | Callable[[Any], Any] | None


def batches(module: MultiTaskMixin, dataloader: Iterable[Any], inputs: Inputs) -> Iterator[tuple[Any, Any]]:
    """Yield the inputs of every batch, and the batch."""
    host: Any = module
    device = module.task_weighting.task_ids.device
    for batch in dataloader:
        moved = host.transfer_batch_to_device(batch, device, 0)
        if inputs is not None:
            yield pick(moved, inputs, "inputs", "name another key with inputs=..., or give a function there"), moved
        elif isinstance(module, MultiTaskSteps):
            yield module.inputs_of(moved), moved
        else:
            yield moved, moved
