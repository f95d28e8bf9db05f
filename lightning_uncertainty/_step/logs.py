"""What a step hands over to the metrics of tasks, and these to the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_uncertainty._step.trainers import all_dataloaders, trainer_of
from lightning_uncertainty.tasks import Task

__all__ = ["log_evaluation", "log_metrics"]


@torch.compiler.disable
def log_evaluation(module: Any, stage: str, tasks: Mapping[str, Task], sums: Tensor, counts: Tensor) -> None:
    """Log the losses of a step in evaluation, sums and counts `[T]`, and the balanced loss."""
    for index, name in enumerate(tasks):
        _update_and_log(module, f"{stage}/{name}/loss", sums[index], counts[index])
    _update_and_log(module, f"{stage}/balanced_loss", sums, counts)


@torch.compiler.disable
@torch.no_grad()
def log_metrics(module: Any, stage: str, tasks: Mapping[str, Task], outputs: Mapping[str, Tensor], batch: Any) -> None:
    """Log the metrics that tasks own of what is observed in a batch."""
    for name, output in outputs.items():
        keys = module.task_metrics.keys_of(stage, name)
        if not keys:
            continue
        observed = tasks[name].observed(name, output, batch)
        for key in keys:
            _update_and_log(module, key, *observed)


def _update_and_log(module: Any, key: str, *values: Tensor) -> None:
    metric = module.task_metrics[key]
    assert isinstance(metric, Metric)
    if not metric.update_called:  # Lightning keeps the metric until the epoch ends: once an epoch is enough
        metric.reset()  # states made in the inference mode of `Trainer.validate` could not be updated in a fit
        with all_dataloaders(trainer_of(module)):
            if getattr(module, "_fabric", None) is None:  # which logs no metrics
                module.log(key, metric, on_step=False, on_epoch=True, metric_attribute=f"task_metrics.{key}")
    metric.update(*values)
