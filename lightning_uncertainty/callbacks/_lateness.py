"""A σ that is far from its optimum for long, as after a spike of the loss, or at too small a learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["lateness"]

_FAR = 1 / 3  # of σ / σ* - 1, either way
_LONG = 500  # steps in which all rows have it on one side
_ROWS_TO_JUDGE = 5
_FALLING = 0.5  # σ* now over σ* in the middle: a loss that goes to zero is no fault of the rate
_GONE = 1e-3  # σ* now over σ* of the first row: nor is one that is there


def lateness(rows: Sequence[Mapping[str, Any]], tasks: Iterable[str], prefix: str = "") -> str | None:
    """Return what to warn of, if a σ that moves has been far from its optimum, on one side, for long; None else.

    Args:
        rows: those of the history.
        tasks: those that the latest row tells of.
        prefix: stands before every key of the rows.
    """
    for task in tasks:
        late = _latest(rows, f"{prefix}sigma_gap/{task}")
        if len(late) < _ROWS_TO_JUDGE or late[-1]["step"] - late[0]["step"] < _LONG:
            continue
        sigmas, optima = zip(*(_sigma_and_optimum(row, task, prefix) for row in late), strict=True)
        first = next(_sigma_and_optimum(row, task, prefix)[1] for row in rows if f"{prefix}sigma_gap/{task}" in row)
        still = len(set(sigmas)) == 1  # held or frozen, as somebody wants
        if still or optima[-1] < _FALLING * optima[len(optima) // 2] or optima[-1] < _GONE * first:
            continue
        size, weight = ("large", "small") if sigmas[-1] > optima[-1] else ("small", "large")
        steps = late[-1]["step"] - late[0]["step"]
        return (
            f"σ of task {task!r} has been more than a third too {size} for {steps} steps: it is {sigmas[-1]:.3g}, "
            f"where the latest losses say {optima[-1]:.3g}, so the task's weight is too {weight}; give log-variances a "
            "higher rate, log_variance_lr=... of parameter_groups or own_group, or have σ start anew, "
            "UncertaintyWeighting(restart=50), or take AnalyticUncertaintyWeighting, which has no rate"
        )
    return None


def _latest(rows: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    """Return the latest rows that have the key, in order, as long as they are all far from 0 on one side."""
    found: list[Mapping[str, Any]] = []
    for row in reversed(rows):
        if key not in row:
            continue
        if abs(row[key]) <= _FAR or (found and (row[key] > 0) != (found[0][key] > 0)):
            break
        found.append(row)
    return found[::-1]


def _sigma_and_optimum(row: Mapping[str, Any], task: str, prefix: str) -> tuple[float, float]:
    sigma, gap = row[f"{prefix}sigma/{task}"], row[f"{prefix}sigma_gap/{task}"]
    return sigma, sigma / (1 + gap) if gap > -1 else math.inf
