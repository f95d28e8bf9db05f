"""What charts show: the kinds of numbers of a run, and its tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

__all__ = ["KINDS", "LOG_KINDS", "MOST_PAIRED", "TaskNames", "metrics_by_task", "scale_of"]

KINDS: dict[str, str] = {
    "sigma": "σ",
    "sigma_gap": "σ / σ* - 1",
    "weight": "effective weight",
    "loss_share": "share of the weighted loss",
    "loss": "loss",
}
LOG_KINDS = ("sigma", "weight", "loss")  # on a log axis where all values are positive
_FEW_DECADES = 100.0  # within which a linear axis shows every line
MOST_PAIRED = 6
"""Tasks whose pairs are logged one by one: 15 pairs."""

TaskNames = Iterable[str] | Mapping[str, Iterable[str]]


def metrics_by_task(tasks: TaskNames) -> dict[str, list[str]]:
    """Return the names of metrics by task, in order; none where only tasks were named."""
    if isinstance(tasks, str):
        raise ValueError(f"tasks should be a list of names: found the text {tasks!r}; write [{tasks!r}]")
    found: dict[str, list[str]] = {}
    for task, metrics in tasks.items() if isinstance(tasks, Mapping) else ((task, ()) for task in tasks):
        if not isinstance(task, str) or not task:
            raise ValueError(f"a task should be given by its name: found {task!r}; name it as in register_tasks")
        if isinstance(metrics, str):
            raise ValueError(
                f"the metrics of task {task!r} should be a list of names: found the text {metrics!r}; write "
                f"[{metrics!r}], as in `val/{task}/{metrics}`"
            )
        if not isinstance(metrics, Iterable):
            raise ValueError(
                f"the metrics of task {task!r} should be a list of names: found {metrics!r}; write [] where it has none"
            )
        if task in found:
            raise ValueError(f"tasks should be named once each: found {task!r} twice; drop one")
        found[task] = list(metrics)
    if not found:
        raise ValueError("tasks should be at least one: found none; name those of register_tasks, as in ['depth']")
    return found


def scale_of(lines: Iterable[Iterable[float]]) -> Literal["log", "symlog", "linear"]:
    """Return the axis on which lines of one kind are seen whole: a log axis leaves out what is not positive.

    Args:
        lines: their values; those that are not finite do not count.

    Example:
        >>> scale_of([[0.1, 300.0]]), scale_of([[-2.0, 3.0], [8.0]]), scale_of([[-2.0, 3.0], [4e5]])
        ('log', 'linear', 'symlog')
    """
    finite = [[value for value in line if math.isfinite(value)] for line in lines]
    if all(value > 0 for line in finite for value in line):
        return "log"
    peaks = [peak for line in finite if line and (peak := max(map(abs, line))) > 0]
    return "symlog" if peaks and max(peaks) > _FEW_DECADES * min(peaks) else "linear"
