"""Numbers given by task name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from lightning_uncertainty._tensors import is_number

__all__ = ["check_names", "named_vector"]


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
