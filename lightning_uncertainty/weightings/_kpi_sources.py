"""Where the key performance indicator (KPI) of a task comes from, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import Tensor
from torchmetrics import Metric

from lightning_uncertainty.likelihoods import Bernoulli, Categorical, CategoricalHalf
from lightning_uncertainty.metrics import ObservedMetric
from lightning_uncertainty.weightings._named import check_names

__all__ = ["LOG_PROBABILITY", "Kpi", "check_kpis", "kpi_sources", "outside", "own_copy"]

Kpi = Metric | Callable[[Tensor], Tensor] | float | Literal["observed"]

LOG_PROBABILITY = (Bernoulli, Categorical, CategoricalHalf)
"""Likelihoods whose loss is the mean of a log-probability, so that it has a KPI of its own."""


def kpi_sources(
    kpis: Mapping[str, Kpi] | Kpi | None, tasks: Sequence[str], probable: Sequence[str], signed: Sequence[str]
) -> dict[str, Kpi]:
    """Return where each task's KPI comes from; 0 for the probability that a loss tells.

    Args:
        kpis: by task name, or one for all.
        tasks: names of the tasks.
        probable: of those whose losses tell a probability.
        signed: of those whose losses may be negative.

    Raises:
        ValueError: a task has none, or something that is none, or one that needs a positive loss, or a name is no task.
    """
    given = kpis if isinstance(kpis, Mapping) else dict.fromkeys(tasks, kpis)
    check_names(given, tuple(tasks), "kpis")
    known = {name: kpi for name, kpi in given.items() if kpi is not None}
    without = [name for name in tasks if name not in known and name not in probable]
    if without:
        raise ValueError(
            f"every task should have a KPI: found none for {', '.join(without)}, whose losses tell no probability; "
            "give kpis={'task': reference} for 1 / (1 + loss / reference), a function of the loss, a metric, or "
            "'observed'"
        )
    for name, kpi in known.items():
        if not (0 < kpi < float("inf") if isinstance(kpi, float | int) else callable(kpi) or kpi == "observed"):
            raise ValueError(
                f"a KPI should be a positive reference, a function of the loss, a metric or 'observed': found {kpi!r} "
                f"for task {name!r}"
            )
    sources = {name: known.get(name, 0.0) for name in tasks}
    wrong = [name for name in signed if isinstance(sources[name], float | int)]
    if wrong:
        raise ValueError(
            f"the KPI of a task whose loss may be negative should not be 1 / (1 + loss / reference): found "
            f"{', '.join(wrong)}; give a metric, a function of the loss, or 'observed'"
        )
    return sources


def own_copy(metric: Metric) -> Metric:
    """Return a copy of a metric whose values of a batch wait for no other process."""
    own = ObservedMetric(metric).metric
    own.dist_sync_on_step = False
    return own


def outside(kpi: Tensor) -> Tensor:
    """Return where a KPI is not in [0, 1]; NaN is not."""
    return ~((kpi >= 0) & (kpi <= 1))


def check_kpis(tasks: Sequence[str], unsound: Tensor, missed: Tensor) -> None:
    """Raise for what was found, `[T]` each: KPIs where they are outside [0, 1], else 0, and where there was none.

    Raises:
        ValueError: there is any of it.
    """
    for name, value, none in zip(tasks, unsound.tolist(), missed.tolist(), strict=True):
        if value != 0:
            raise ValueError(
                f"the KPI of task {name!r} should lie in [0, 1], higher better: found {value:g}; map it there, as "
                "1 / (1 + error / reference) does"
            )
        if none:
            raise ValueError(
                f"the KPI of task {name!r} should be observed before the task is weighed: found none; take task_step, "
                f"which computes metrics, or call task_weighting.observe({{{name!r}: ...}})"
            )
