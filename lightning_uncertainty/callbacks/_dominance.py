"""A task that takes over: nearly all weight is its own, and its σ keeps falling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["dominance"]

_DOMINANT = 0.95  # share of the weight
_FALLEN = 0.5  # σ now over σ of the first row; shares alone compare units
_FALLING = 0.9  # σ now over σ in the middle of the history
_ROWS_TO_JUDGE = 10


def dominance(rows: Sequence[Mapping[str, Any]], shares: Mapping[str, float], prefix: str = "") -> str | None:
    """Return what to warn of, if a task takes nearly all weight and its σ fell and still falls; None else.

    Args:
        rows: those of the history.
        shares: share of the weight by task, now.
        prefix: stands before every key of the rows.
    """
    if len(shares) == 1 or len(rows) < _ROWS_TO_JUDGE:
        return None
    for task, share in shares.items():
        if share <= _DOMINANT:
            continue
        key = f"{prefix}sigma/{task}"
        first, middle, last = (row.get(key, math.nan) for row in (rows[0], rows[len(rows) // 2], rows[-1]))
        if last < _FALLEN * first and last < _FALLING * middle:
            return (
                f"task {task!r} takes {share:.0%} of the weight, and its σ has fallen from {first:.3g} to {last:.3g} "
                "and is still falling: its loss is heading to zero, as when a model overfits or a task is too easy; "
                f"stop earlier, regularise, or cap its weight with UncertaintyWeighting(bounds={{{task!r}: (lowest, "
                "math.inf)})"
            )
    return None
