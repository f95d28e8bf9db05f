"""The metrics of tasks, by log key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn
from torchmetrics import Metric

from lightning_uncertainty._tensors import Float32Module
from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.metrics import BalancedLoss, ObservedMetric, TaskLoss
from lightning_uncertainty.tasks.stages import EVALUATION, STAGES
from lightning_uncertainty.tasks.task import Task

__all__ = ["TaskMetrics"]


class TaskMetrics(Float32Module, nn.ModuleDict):
    """A metric for every log key of the stages.

    Args:
        tasks: by name.
        powers: what each task counts in the balanced loss.

    Raises:
        ValueError: a metric has a name that is taken.
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
        return [key for key in self if key.startswith(prefix) and key != f"{prefix}loss"]


def _metrics_of(tasks: Mapping[str, Task], powers: Iterable[float]) -> dict[str, Metric]:
    """Make a metric for every log key of the stages; `powers` are those of the balanced loss.

    Raises:
        ValueError: a metric has a name that is taken.
    """
    metrics: dict[str, Metric] = {}
    for stage in STAGES:
        for name, task in tasks.items():
            given = task.metrics
            named = {type(given).__name__: given} if isinstance(given, Metric) else dict((given or {}).items())
            if "loss" in named:
                raise ValueError(
                    f"a metric of task {name!r} should not be called 'loss', which is the mean loss: rename it in the "
                    "MetricCollection"
                )
            metrics |= {f"{stage}/{name}/{key}": ObservedMetric(metric) for key, metric in named.items()}
    normalised = [name for name, task in tasks.items() if as_likelihood(task.likelihood).normalised]
    for stage in EVALUATION:
        metrics |= {f"{stage}/{name}/loss": TaskLoss() for name in tasks}
        metrics[f"{stage}/balanced_loss"] = BalancedLoss(dict(zip(tasks, powers, strict=True)), normalised)
    return metrics
