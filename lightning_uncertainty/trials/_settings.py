"""Settings of a model, by name, and which of them each weighting does best at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from lightning_uncertainty.trials._plan import Plan
from lightning_uncertainty.trials._trial import Trial

__all__ = ["chosen", "points_of"]


def points_of(settings: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return all combinations.

    Raises:
        ValueError: a setting has no values, or one twice.

    Example:
        >>> points_of({"lr": [1e-3, 3e-3]}), points_of({})
        ([{'lr': 0.001}, {'lr': 0.003}], [{}])
    """
    for name, values in settings.items():
        if isinstance(values, str) or not values or len({repr(value) for value in values}) < len(values):
            raise ValueError(
                f"a setting should have values that differ: found {values!r} for {name!r}; write {{'lr': [1e-3, 3e-3]}}"
            )
    return [dict(zip(settings, values, strict=True)) for values in product(*settings.values())]


def chosen(plans: Sequence[Plan], trials: Mapping[Plan, Trial], key: str) -> Plan:
    """Return the plan whose trial is best at its last validation; the first where all have failed.

    Args:
        plans: of one weighting, one task or all, and one seed.
        trials: by plan.
        key: log key that all tasks go by; one that is trained alone goes by its loss.

    Raises:
        ValueError: it was not logged.
    """

    def badness(plan: Plan) -> tuple[bool, float]:
        trial = trials[plan]
        if trial.failed:
            return True, math.inf
        own, row = trial.judged_by(key), trial.rows[-1]
        if own not in row:
            raise ValueError(
                f"choose_by should be a log key of validation: found nothing under {own!r} among {', '.join(row)}"
            )
        return False, trial.badness(row, own)

    return min(plans, key=badness)
