"""Tasks that take over: their weight has outgrown that of all others, and their σ keeps falling.

Weights themselves are in units of the labels and tell nothing across tasks; how much they have grown does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["dominance"]

_DOMINANT = 0.99  # share of the growth of all weights; what is learnt well may grow a hundredfold
_FALLEN = 0.5  # σ now over σ of the first row
_FALLING = 0.9  # σ now over σ in the middle of the history
_ROWS_TO_JUDGE = 10
_NAMED = 3  # so many tasks are named one by one


def dominance(rows: Sequence[Mapping[str, Any]], weights: Mapping[str, float], prefix: str = "") -> str | None:
    """Return what to warn of, if the weights of tasks outgrew all others and their σ fell and still fall; None else.

    Several do so together only where the σ of another stands still: where all fall, all are learnt.

    Args:
        rows: those of the history.
        weights: effective weights by task, now.
        prefix: stands before every key of the rows.
    """
    if len(rows) < _ROWS_TO_JUDGE:
        return None
    learnt = {task: weight for task, weight in weights.items() if f"{prefix}sigma/{task}" in rows[-1]}
    growth = {task: _over(weight, rows[0].get(f"{prefix}weight/{task}")) for task, weight in learnt.items()}
    total = sum(growth.values())
    if len(growth) < 2 or not 0 < total < math.inf:
        return None
    shares = {task: grown / total for task, grown in growth.items()}
    curves = {
        task: [row.get(f"{prefix}sigma/{task}", math.nan) for row in (rows[0], rows[len(rows) // 2], rows[-1])]
        for task in shares
    }
    falling = [task for task, (first, middle, last) in curves.items() if _falls(first, middle, last)]
    alone = [task for task in falling if shares[task] > _DOMINANT]
    if alone:
        return _of_one(alone[0], growth, curves[alone[0]])
    still = [task for task, (first, _, last) in curves.items() if last >= _FALLING * first]
    share = sum(shares[task] for task in falling)
    return _of_several(falling, growth, curves, still) if still and share > _DOMINANT else None


def _over(now: float, first: float | None) -> float:
    """Return how much a weight has grown; 0 where it has not begun."""
    return now / first if first else 0.0


def _grown(tasks: Sequence[str], growth: Mapping[str, float]) -> str:
    """Say how much the weights of tasks have grown beside those of the others."""
    grown = [growth[task] for task in tasks]
    own = (
        " and ".join(f"{value:.3g}" for value in grown)
        if len(grown) < _NAMED
        else f"{min(grown):.3g} to {max(grown):.3g}"
    )
    others = max(grown for task, grown in growth.items() if task not in tasks)
    return f"grown {own} times since the first row, the others' at most {others:.3g} times"


def _falls(first: float, middle: float, last: float) -> bool:
    return last < _FALLEN * first and last < _FALLING * middle


def _of_one(task: str, growth: Mapping[str, float], curve: Sequence[float]) -> str:
    return (
        f"task {task!r} takes over: its weight has {_grown([task], growth)}, and its σ has fallen from {curve[0]:.3g} "
        f"to {curve[-1]:.3g} and is still falling: its loss is heading to zero, as when a model overfits or a task is "
        "too easy, or its labels are in a large unit, from which the network began far off; stop earlier, regularise, "
        f"cap its weight with UncertaintyWeighting(bounds={{{task!r}: (lowest, math.inf)}}), or for such labels put "
        "Rescale(mean, std) behind its head"
    )


def _of_several(
    tasks: Sequence[str], growth: Mapping[str, float], curves: Mapping[str, Sequence[float]], still: Sequence[str]
) -> str:
    falls = _first([f"{task} from {curves[task][0]:.3g} to {curves[task][-1]:.3g}" for task in tasks])
    return (
        f"tasks {_first(list(map(repr, tasks)))} take over: their weights have {_grown(tasks, growth)}, and their σ "
        f"fall together ({falls}) "
        f"while that of {_first(list(map(repr, still)))} stands still: their losses may be small for a trivial reason, "
        "as of a network that predicts zero, or their labels in a large unit; begin with "
        "UncertaintyWeighting(start=0.0) and a slow log_variance_lr, cap their weights with bounds, or for such labels "
        "put Rescale(mean, std) behind their heads"
    )


def _first(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
