"""Key performance indicators of a training batch, for weightings that follow them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed
from torchmetrics import Metric

from lightning_uncertainty._tensors import promote, world_size
from lightning_uncertainty.tasks import Task
from lightning_uncertainty.weightings import Weighting

__all__ = ["hearing"]


def hearing(
    weighting: Weighting, tasks: Mapping[str, Task], outputs: Mapping[str, Tensor], batch: Any
) -> AbstractContextManager[None]:
    """Have a weighting hear, within, what metrics it asks for say of a training batch; nothing else costs anything.

    Raises:
        ValueError: a metric has no single number.
    """
    metrics = weighting.kpi_metrics() if weighting.learning else {}
    return weighting.hearing(_measured(metrics, tasks, outputs, batch)) if metrics else nullcontext()


@torch.compiler.disable
@torch.no_grad()
def _measured(
    metrics: Mapping[str, Metric], tasks: Mapping[str, Task], outputs: Mapping[str, Tensor], batch: Any
) -> Tensor:
    """Return the values `[T]` over the global batch, means over ranks by numbers of labels; NaN where there is none."""
    like = promote(next(iter(outputs.values())))
    sums = like.new_zeros(2, len(tasks))  # values times labels, labels
    for index, name in enumerate(tasks):
        if name in metrics:
            prediction, label = tasks[name].observed(name, outputs[name], batch)
            if len(label):
                value = _value(name, metrics[name], prediction, label).to(like)
                known = ~value.isnan()
                sums[:, index] = len(label) * torch.stack([torch.where(known, value, 0.0), known.to(like)])
    if world_size() > 1:
        distributed.all_reduce(sums)
    values, labels = sums
    return torch.where(labels > 0, values / labels.clamp(min=1), torch.nan)


def _value(name: str, metric: Metric, prediction: Tensor, label: Tensor) -> Tensor:
    if metric.device != label.device:
        metric.to(label.device)
    try:
        value = metric(prediction, label)
    except ValueError as error:  # as R2Score says of a single label
        warnings.warn(f"the KPI of task {name!r} has no value of {len(label)} labels: {error}", stacklevel=2)
        value = torch.tensor(torch.nan)
    metric.reset()
    if not isinstance(value, Tensor) or value.shape:
        found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(
            f"the KPI of task {name!r} should be a metric with one number: found {found} from {metric!r}; average it"
        )
    return value
