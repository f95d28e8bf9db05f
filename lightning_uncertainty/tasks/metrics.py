"""The metrics of tasks, by log key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn
from torchmetrics import Metric

from lightning_uncertainty._tensors import Float32Module
from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.metrics import ObservedMetric
from lightning_uncertainty.metrics.observed import MetricPart
from lightning_uncertainty.metrics.stage_losses import LossPart, StageLosses
from lightning_uncertainty.tasks._own_metrics import own_metrics
from lightning_uncertainty.tasks.stages import EVALUATION, STAGES
from lightning_uncertainty.tasks.task import Task

__all__ = ["TaskMetrics"]


class TaskMetrics(Float32Module, nn.ModuleDict):
    """A metric for every log key of the stages.

    Args:
        tasks: by name.
        powers: what each task counts in the balanced loss.

    Raises:
        ValueError: a metric cannot be used.
    """

    def __init__(self, tasks: Mapping[str, Task], powers: Iterable[float]) -> None:
        super().__init__(_metrics_of(tasks, powers))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TaskMetrics:
        metrics = [metric for metric in self.modules() if isinstance(metric, Metric)]
        first = [(metric._defaults, name, value) for metric in metrics for name, value in metric._defaults.items()]
        super()._apply(fn, recurse)
        for defaults, name, value in first:  # `to_empty`, of which torchmetrics knows nothing, leaves them unfilled
            emptied = defaults[name]
            if isinstance(value, Tensor) and isinstance(emptied, Tensor) and not value.is_meta:
                defaults[name] = value.to(emptied)
        return self

    def keys_of(self, stage: str, task: str) -> list[str]:
        """Return the keys of the metrics that a task owns."""
        prefix = f"{stage}/{task}/"
        return [key for key in self if key.startswith(prefix) and isinstance(self[key], ObservedMetric)]

    def logged(self, key: str, names: Iterable[str] | None) -> list[str]:
        """Return the keys under which a metric's numbers are logged; None and "" are its own."""
        whole = self[key]
        assert isinstance(whole, ObservedMetric)
        keys = [f"{key}/{name}" if name else key for name in names or ("",)]
        for name, own in zip(names or (), keys, strict=False):
            if own not in self:
                self[own] = MetricPart(whole, name)
        return keys


def _metrics_of(tasks: Mapping[str, Task], powers: Iterable[float]) -> dict[str, Metric]:
    """Make a metric for every log key of the stages; `powers` are those of the balanced loss.

    Raises:
        ValueError: a metric cannot be used.
    """
    owned = {name: own_metrics(name, task) for name, task in tasks.items()}
    metrics: dict[str, Metric] = {
        f"{stage}/{name}/{key}": ObservedMetric(metric, form)
        for stage in STAGES
        for name, own in owned.items()
        for key, (metric, form) in own.items()
    }
    kinds = {name: as_likelihood(task.likelihood) for name, task in tasks.items()}
    normalised = [name for name, kind in kinds.items() if kind.normalised]
    constant = [name for name, kind in kinds.items() if kind.constant]
    of_tasks = dict(zip(tasks, powers, strict=True))
    for stage in EVALUATION:
        losses = StageLosses(of_tasks, normalised, constant)
        metrics |= {f"{stage}/{name}/loss": LossPart(losses, name) for name in tasks}
        metrics[f"{stage}/balanced_loss"] = losses
    return metrics
