"""What charts show: the kinds of numbers of a run, and its tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["KINDS", "LOG_KINDS", "MOST_PAIRED", "TaskNames", "metrics_by_task"]

KINDS: dict[str, str] = {
    "sigma": "σ",
    "sigma_gap": "σ / σ* - 1",
    "weight": "effective weight",
    "loss_share": "share of the weighted loss",
    "loss": "loss",
}
LOG_KINDS = ("sigma", "weight", "loss")  # drawn on a log axis
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
