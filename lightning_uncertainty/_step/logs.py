"""What a step hands over to the metrics of tasks, and these to the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_uncertainty._step.trainers import all_dataloaders, logging_module, path_in, trainer_of
from lightning_uncertainty.metrics import ObservedMetric
from lightning_uncertainty.metrics.forms import Selected, select
from lightning_uncertainty.tasks import Task
from lightning_uncertainty.tasks.metrics import TaskMetrics

__all__ = ["log_evaluation", "log_metrics", "log_prefix"]


@torch.compiler.disable
def log_evaluation(module: Any, stage: str, tasks: Mapping[str, Task], sums: Tensor, counts: Tensor) -> None:
    """Log the losses of a step in evaluation, sums and counts `[T]`, and the balanced loss, in one update for all."""
    whole = module.task_metrics[f"{stage}/balanced_loss"]
    if not whole.update_called:  # Lightning keeps metrics until the epoch ends: once an epoch is enough
        keys = [*(f"{stage}/{name}/loss" for name in tasks), f"{stage}/balanced_loss"]
        for metric in map(module.task_metrics.__getitem__, keys):
            if not metric.update_called:
                metric.reset()  # states made in the inference mode of `Trainer.validate` could not be updated in a fit
        _log(module, keys)
    whole.update(sums, counts)


@torch.compiler.disable
@torch.no_grad()
def log_metrics(module: Any, stage: str, tasks: Mapping[str, Task], outputs: Mapping[str, Tensor], batch: Any) -> None:
    """Log the metrics that tasks own of what is observed in a batch.

    Raises:
        ValueError: a metric cannot take it.
    """
    for name, output in outputs.items():
        keys = module.task_metrics.keys_of(stage, name)
        if not keys:
            continue
        aligned = tasks[name].aligned(name, output, batch)
        chosen: dict[str, Selected] = {}  # by what metrics want, which most have in common
        for key in keys:
            metric = module.task_metrics[key]
            want = f"{metric.form} {metric.gaps}"
            if want not in chosen:
                chosen[want] = select(metric.form, metric.gaps, *aligned)
            _update_owned(module, key, metric, chosen[want])


def _update_owned(module: Any, key: str, metric: ObservedMetric, selected: Selected) -> None:
    if not metric.update_called:
        metric.reset()
        _log(module, module.task_metrics.logged(key, metric.names(*selected.given)))
    try:
        metric.update(*selected.given)
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        shapes = " and ".join(str(list(part.shape)) for part in selected.given[:2])
        raise ValueError(
            f"the metric of {key!r}, a {type(metric.metric).__name__} on {metric.form}, should take predictions and "
            f"labels of shape {shapes}: found that it does not: {error}; see metrics_on of Task"
        ) from error
    metric.leave_out(selected.left_out)


def log_prefix(host: Any, module: Any) -> str:
    """What stands before the keys under which a module logs: of several with tasks in what a Trainer runs, its path."""
    several = sum(isinstance(part, TaskMetrics) for part in host.modules()) > 1
    return path_in(host, module).replace(".", "/") if several else ""


def _log(module: Any, keys: Iterable[str]) -> None:
    host = logging_module(module)
    if host is None:
        return
    path, prefix = path_in(host, module), log_prefix(host, module)
    with all_dataloaders(trainer_of(module)):
        for key in keys:
            attribute = f"{path}task_metrics.{key}"
            metric = module.task_metrics[key]
            host.log(f"{prefix}{key}", metric, on_step=False, on_epoch=True, metric_attribute=attribute)
