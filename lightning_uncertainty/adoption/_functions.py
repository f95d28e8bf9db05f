"""Hearing what functions return, and which loss a number came from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, TypeVar

from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Follow", "TorchFunctions", "is_of_torch", "patched"]


Made = TypeVar("Made", bound=Any)


def is_of_torch(function: Callable[..., Any]) -> bool:
    """Whether torch tells of a function's calls, by whatever name a host holds it."""
    module = getattr(function, "__module__", None) or getattr(
        getattr(function, "__objclass__", None), "__module__", "torch"
    )
    return str(module).split(".")[0] == "torch"


def _seen_through(function: Made) -> Made:
    """Have a compiler look through a function where it compiles a caller, and not compile the function by itself.

    `torch.compiler.disable` would keep it from both: nothing within a mode would be compiled.
    """
    with suppress(ImportError):  # it is torch's own
        from torch._dynamo.eval_frame import skip_code

        skip_code(function.__code__)
    return function


class TorchFunctions(TorchFunctionMode):
    """Shows what functions of torch return."""

    def __init__(self, records: Mapping[Callable[..., Any], Callable[[Any], None]]) -> None:
        super().__init__()
        self._records = records

    @_seen_through
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        record = self._records.get(func)
        if record is not None:
            record(returned)
        return returned


class Follow(TorchFunctionMode):
    """Knows which loss a number without graph came from: `loss.detach()`, `loss.item()`, `float(loss)`."""

    _WAYS = frozenset(
        ("detach", "item", "cpu", "clone", "to", "float", "double", "half", "__float__", "mean", "tolist", "numpy")
    )

    def __init__(self) -> None:
        super().__init__()
        self._sources: dict[int, tuple[Any, Tensor]] = {}

    @_seen_through
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        if args and getattr(func, "__name__", "") in self._WAYS:
            given = args[0]
            if isinstance(given, Tensor) and given.numel() == 1:
                source = self.source_of(given)
                if source.requires_grad and not getattr(returned, "requires_grad", False):
                    self._sources[id(returned)] = (returned, source)  # held, or another object gets its id
        return returned

    def source_of(self, value: Any) -> Any:
        """Return the loss that a number is of; itself where it is none's."""
        return self._sources.get(id(value), (value, value))[1]


@contextmanager
def patched(function: Callable[..., Any], instead: Callable[..., Any]) -> Iterator[None]:
    """Have modules that hold a function by name hold another within."""
    holders = _holders(function)
    try:
        for names, name in holders:
            names[name] = instead
        yield
    finally:
        for names, name in holders:
            names[name] = function


@cache
def _holders(function: Callable[..., Any]) -> tuple[tuple[dict[str, Any], str], ...]:
    """Return where modules hold a function, and its name there; all are looked at once."""
    namespaces = [getattr(module, "__dict__", None) for module in list(sys.modules.values())]
    return tuple(
        (names, name)
        for names in namespaces
        if isinstance(names, dict)
        for name, value in list(names.items())
        if value is function
    )
