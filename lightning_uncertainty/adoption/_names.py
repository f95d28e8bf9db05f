"""Whether what an adopted module needs for itself stands under its names still."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

__all__ = ["OwnNames"]

_NOT_FIXED = {"_adoption", "skipped_steps"}
"""What holds these names itself, and a number that changes."""


class OwnNames:
    """What stood under the names that an adopted module needs, when it was adopted.

    Args:
        module: that has been given what it needs.
        names: of this, and of all that its class needs.
    """

    def __init__(self, module: nn.Module, names: Iterable[str]) -> None:
        self._names = frozenset(names) - _NOT_FIXED
        self._own = dict(_named(module, self._names))

    def taken(self, module: nn.Module) -> list[str]:
        """Return the names under which something else stands now."""
        found = dict(_named(module, self._names))
        return sorted(name for name in found.keys() | self._own.keys() if not _holds(found, self._own, name))

    def begins(self, module: Any) -> bool:
        """Whether a fit begins, as far as what was the module's own knows."""
        return not self._own["_task_fit"].is_checked(module)


def _named(module: nn.Module, names: frozenset[str]) -> Iterator[tuple[str, Any]]:
    for kept in (vars(module), module._modules, module._parameters, module._buffers):
        yield from ((name, kept[name]) for name in names.intersection(kept))


def _holds(found: dict[str, Any], own: dict[str, Any], name: str) -> bool:
    """Whether the same stands under a name, or a module around it, as wrappers put there."""
    if name not in found or name not in own:
        return False
    now, before = found[name], own[name]
    return now is before or (isinstance(now, nn.Module) and any(part is before for part in now.modules()))
