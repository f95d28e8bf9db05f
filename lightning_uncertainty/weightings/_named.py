"""What is given by task name: numbers, and kinds of likelihoods."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from lightning_uncertainty._tensors import is_number
from lightning_uncertainty.likelihoods import Likelihood

__all__ = ["check_names", "kinds_of", "named_vector"]


def check_names(names: Iterable[str], tasks: tuple[str, ...], what: str) -> None:
    """Raise where a name is no task.

    Raises:
        ValueError: so it is.
    """
    unknown = [name for name in names if name not in tasks]
    if unknown:
        raise ValueError(f"{what} should name registered tasks ({', '.join(tasks)}): found {', '.join(unknown)}")


def named_vector(
    values: Mapping[str, float], tasks: tuple[str, ...], default: float, what: str, minimum: float = -math.inf
) -> tuple[float, ...]:
    """Put numbers given by task name into the order of `tasks`.

    Raises:
        ValueError: a name is no task, or a number is not finite or below the minimum.
    """
    check_names(values, tasks, what)
    for name, value in values.items():
        if not is_number(value) or not abs(value) <= torch.finfo(torch.float32).max or value < minimum:  # NaN too
            least = "" if minimum == -math.inf else f", at least {minimum:g}"
            raise ValueError(f"{what} should be finite numbers{least}: found {value!r} for task {name!r}")
    return tuple(float(values.get(name, default)) for name in tasks)


def kinds_of(weighting: Any, tasks: Mapping[str, Likelihood]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of tasks whose likelihood is normalised, and of those that are constant terms.

    Raises:
        ValueError: the weighting takes none.
    """
    kind = type(weighting).__name__
    constant = tuple(name for name, likelihood in tasks.items() if likelihood.constant)
    if constant and not weighting.takes_constant:
        raise ValueError(
            f"tasks of {kind} should be tasks, whose weights it decides on: found constant terms "
            f"{', '.join(constant)}; add them to what weigh returns, or take UncertaintyWeighting, "
            "AnalyticUncertaintyWeighting or FixedWeighting"
        )
    normalised = tuple(name for name, likelihood in tasks.items() if likelihood.normalised)
    if normalised and not weighting.takes_normalised:
        raise ValueError(
            f"tasks of {kind} should have losses that are positive and no scale of their own: found normalised "
            f"likelihoods of {', '.join(normalised)}; take UncertaintyWeighting, or wrap them in AsGeneric"
        )
    return normalised, constant
