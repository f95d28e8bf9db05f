"""Settings of a model, by name, and which of them each weighting does best at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from lightning_uncertainty.trials._plan import Plan
from lightning_uncertainty.trials._setup import text_of
from lightning_uncertainty.trials._trial import Trial

__all__ = ["chosen", "points_of"]


def points_of(settings: Mapping[str, Iterable[Any]]) -> list[dict[str, Any]]:
    """Return all combinations, numbers of numpy as Python's.

    Raises:
        ValueError: a setting has no values, or two whose texts are alike, by which trials are told apart.

    Example:
        >>> points_of({"lr": [1e-3, 3e-3]}), points_of({})
        ([{'lr': 0.001}, {'lr': 0.003}], [{}])
    """
    lists = {}
    for name, values in settings.items():
        if name == "weighting":
            raise ValueError("a setting should not be called 'weighting', which `make` is given anyway; rename it")
        given = None if isinstance(values, str) or not isinstance(values, Iterable) else list(map(_plain, values))
        if not given or len({text_of(value) for value in given}) < len(given):
            raise ValueError(
                f"a setting should have values whose texts differ: found {given or values!r} for {name!r}; write "
                "{'lr': [1e-3, 3e-3]}, and names or numbers in place of functions and objects"
            )
        lists[name] = given
    return [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


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
        return (True, math.inf) if trial.failed else (False, judged_by(trial, key))

    return min(plans, key=badness)


def judged_by(trial: Trial, key: str) -> float:
    """Return what is the lower the better a trial is at its last validation.

    Raises:
        ValueError: it was not logged.
    """
    own, row = trial.judged_by(key), trial.rows[-1]
    if own not in row:
        raise ValueError(
            f"choose_by should be a log key of validation: found nothing under {own!r} among {', '.join(row)}"
        )
    return trial.badness(row, own)
