"""Which numbers a task is judged by, and which way is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Directions", "Measure", "MetricNames", "directions", "find_measures"]

MetricNames = Mapping[str, str | Sequence[str]]
Directions = Mapping[str, bool | Mapping[str, bool]]

STAGES = {"val": "validation", "test": "testing"}


@dataclass(frozen=True)
class Measure:
    """A number that a task is judged by.

    Attributes:
        task: its name.
        metric: name of the metric.
        key: under which it is logged.
        higher_is_better: its direction.
    """

    task: str
    metric: str
    key: str
    higher_is_better: bool


def directions(module: Any) -> dict[str, bool | None]:
    """Return by log key which way is better, of what a module's tasks own; None where torchmetrics does not say."""
    return {key: metric.higher_is_better for key, metric in module.task_metrics.items() if key.startswith("val/")}


def find_measures(
    tasks: Iterable[str],
    row: Mapping[str, float],
    known: Mapping[str, bool | None],
    metrics: MetricNames | None = None,
    higher_is_better: Directions | None = None,
    stage: str = "val",
) -> tuple[Measure, ...]:
    """Return what each task is judged by: what the user names, else its first metric, else its loss.

    Args:
        tasks: their names.
        row: what a validation logged, by log key.
        known: directions by log key.
        metrics: by task, names under `val/<task>/`, or log keys.
        higher_is_better: by task, or by task and metric; comes before what is known.
        stage: "val", or "test" for what was found on the test data; directions are known of "val".

    Raises:
        ValueError: a task is unknown, a metric is not logged, or has no known direction.

    Example:
        >>> find_measures(["depth"], {"val/depth/loss": 0.3}, {"val/depth/loss": False})
        (Measure(task='depth', metric='loss', key='val/depth/loss', higher_is_better=False),)
    """
    tasks, metrics, higher_is_better = list(tasks), metrics or {}, higher_is_better or {}
    for what, given in {"metrics": metrics, "higher_is_better": higher_is_better}.items():
        unknown = [task for task in given if task not in tasks]
        if unknown:
            raise ValueError(f"{what} should name tasks ({', '.join(tasks)}): found {', '.join(unknown)}")
    found = []
    for task in tasks:
        names = metrics.get(task) or _default(f"{stage}/{task}/", row)
        for name in [names] if isinstance(names, str) else names:
            key = name if name in row else f"{stage}/{task}/{name}"
            if key not in row:
                raise ValueError(
                    f"a metric of task {task!r} should be logged in {STAGES[stage]}: found nothing under {key!r} among "
                    f"{', '.join(row)}"
                )
            found.append(
                Measure(
                    task,
                    name,
                    key,
                    _direction(task, name, known.get(key.replace("test/", "val/", 1)), higher_is_better),
                )
            )
    return tuple(found)


def _default(prefix: str, row: Mapping[str, float]) -> str:
    names = [key.removeprefix(prefix) for key in row if key.startswith(prefix)]
    return next((name for name in names if name != "loss"), "loss")


def _direction(task: str, name: str, known: bool | None, given: Directions) -> bool:
    ours = given.get(task)
    direction = ours.get(name) if isinstance(ours, Mapping) else ours
    direction = known if direction is None else direction
    if direction is None:
        raise ValueError(
            f"a metric should have a direction: found none for {name!r} of task {task!r}; give higher_is_better="
            f"{{{task!r}: True}}, or False"
        )
    return direction
