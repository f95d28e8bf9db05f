"""Whether the names that the mixin needs on a module are its own still."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from torch import nn

__all__ = ["PACKAGE", "check_class_names", "check_names", "is_ours"]

PACKAGE = __name__.split(".")[0]


def check_class_names(kind: type) -> None:
    """Look whether a class has something under the name of a method of ours that cannot stand in for it.

    Raises:
        TypeError: it has.
    """
    first: dict[str, type] = {}
    for base in kind.__mro__:
        for name in vars(base):
            first.setdefault(name, base)
    others = {name: base for name in _methods(kind) if not is_ours(base := first[name])}
    _refuse(f"{base.__name__}.{name}" for name, base in others.items() if _hides(name, vars(base)[name]))


def check_names(module: nn.Module) -> None:
    """Look whether a module keeps something under the name of a method of ours that cannot stand in for it.

    Raises:
        TypeError: it does.
    """
    kept = {**vars(module), **module._modules, **module._parameters, **module._buffers}
    kind = type(module)
    _refuse(f"{kind.__name__}.{name}" for name in _methods(kind) if name in kept and _hides(name, kept[name]))


def _methods(kind: type) -> list[str]:
    """Return the names of the methods of ours that a class has, sorted."""
    found = {name for base in kind.__mro__ if is_ours(base) for name, value in vars(base).items() if callable(value)}
    return sorted(name for name in found if not name.startswith("__"))


def is_ours(kind: type) -> bool:
    """Whether a class is of this package."""
    return kind.__module__.split(".")[0] == PACKAGE


def _hides(name: str, value: object) -> bool:
    """Whether a method is not there any more: what begins with an underscore is not known well enough to override."""
    other = isinstance(value, nn.Module | property | cached_property)
    return name.startswith("_") or other or not (callable(value) or hasattr(value, "__get__"))


def _refuse(hidden: Iterable[str]) -> None:
    if found := ", ".join(hidden):
        raise TypeError(
            "a module should leave the names of the methods that weighting needs to these: found "
            f"{found}, which would take the place of one; rename it"
        )
