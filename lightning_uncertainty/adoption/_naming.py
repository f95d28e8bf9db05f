"""Parts from the strings that name them, one for each task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from lightning_uncertainty.adoption._paths import fetch
from lightning_uncertainty.adoption.parts import Call, Function, HostWeight, Logged, Part

__all__ = ["Parts", "as_part", "as_parts"]

Parts = Mapping[str, str | Part] | str | HostWeight


def as_part(given: Any) -> Part:
    """Return the part that a string says.

    Raises:
        ValueError: it says none.

    Example:
        >>> as_part("call:criterion@['giou']")
        Call(path='criterion', n=None, entry="['giou']")
    """
    if isinstance(given, Part):
        return given
    kind, found, rest = str(given).partition(":")
    if not (isinstance(given, str) and found and rest and kind in ("log", "weight", "call", "function")):
        raise ValueError(
            "a part should be named by its kind, as 'log:KEY', 'weight:PATH', 'call:PATH@N' or 'function:NAME@N': "
            f"found {given!r}; `describe` of lightning_uncertainty.adoption lists those of a host"
        )
    if kind == "log":
        return Logged(rest)
    if kind == "weight":
        return HostWeight(rest)
    path, at, after = rest.partition("@")
    number, entry = re.fullmatch(r"(\d*)(.*)", after, re.DOTALL).groups()  # type: ignore[union-attr]
    n = int(number) if number else None
    if (at and not after) or (entry and (kind == "function" or entry[0] not in "[.")):
        raise ValueError(
            "after @ a part should have the number of a call, from 0, and for a call an entry of what it returns, as "
            f"in \"call:criterion@1['loss_bbox']\": found {given!r}"
        )
    return Call(path, n, entry) if kind == "call" else Function(path, n)


def as_parts(given: Parts, tasks: list[str], rest: str | None, host: Any = None) -> dict[str, Part]:
    """Return a part for every task but the one that is the rest.

    Args:
        given: parts by task, or the path of weights for all; of one number in the host, if there is one task alone.
        tasks: their names, in order.
        rest: the task that has none.
        host: whose weights they are.

    Raises:
        ValueError: a task has none, a part is no task's or two tasks' at once, or there are more or fewer weights.
    """
    named = [name for name in tasks if name != rest]
    if isinstance(given, str | HostWeight):
        vector = as_part(given)
        if not isinstance(vector, HostWeight):
            raise ValueError(
                "one part for all tasks should be a tensor or list of weights, as 'weight:PATH': found "
                f"'{vector}'; give parts by task"
            )
        if len(named) == 1 and _is_number(host, vector):
            return {named[0]: vector}
        several = _length(host, vector)
        if several not in (None, len(named)):
            raise ValueError(
                f"'{vector}' for all tasks should have a weight for each ({', '.join(named)}): found {several} there; "
                f"name those that are meant, as in {{{named[0]!r}: '{vector}[0]'}}, and have a task for every other "
                "or rest='plain'"
            )
        return {name: HostWeight(f"{vector.path}[{index}]") for index, name in enumerate(named)}
    if not isinstance(given, Mapping) or given.keys() != set(named):
        found = ", ".join(map(str, given)) if isinstance(given, Mapping) else repr(given)
        but = f", as {rest!r} is the rest" if rest in tasks else ""
        raise ValueError(
            f"every task should have a part ({', '.join(named)}{but}): "
            f"found {found or 'none'}; give parts by task, as in {{{named[0] if named else 'depth'!r}: 'log:KEY'}}"
        )
    parts = {name: as_part(given[name]) for name in named}
    for at, first in enumerate(named):
        for second in named[at + 1 :]:
            if parts[first].overlaps(parts[second]):
                raise ValueError(
                    f"a part should be one task's: found '{parts[first]}' for {first!r} and "
                    f"'{parts[second]}' for {second!r}; say which call each is, or join the tasks"
                )
    return parts


def _is_number(host: Any, weight: HostWeight) -> bool:
    """Whether a weight is one number in a host, as it is now."""
    try:
        found = fetch(host, weight.keys, f"'{weight}'")
    except RuntimeError:
        return False
    return isinstance(found, Real) or (isinstance(found, Tensor) and found.dim() == 0)


def _length(host: Any, weight: HostWeight) -> int | None:
    """Return how many weights stand in a host, as it is now; None where that is not known."""
    try:
        found = fetch(host, weight.keys, f"'{weight}'")
    except RuntimeError:
        return None
    if isinstance(found, Tensor):
        return found.numel() if found.dim() else None
    return len(found) if isinstance(found, Sequence) and not isinstance(found, str) else None
