"""One step of a host, looked at from all sides: what it logs, what its calls and functions return."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FrameType
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode, resolve_name

from lightning_uncertainty.adoption._functions import Follow
from lightning_uncertainty.adoption._structure import held_by
from lightning_uncertainty.adoption.parts import Function

__all__ = ["Probe", "Scalar"]

_OUTSIDE = (
    *("torch", "pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "torchmetrics"),
    *("lightning_uncertainty", "contextlib"),
)
_REDUCTIONS = ("mean", "sum", "norm", "logsumexp")
_CALLERS = ("_call_impl", "_wrapped_call_impl", "__call__")
_DEEP = 2
_GUESSES = 8


@dataclass
class Scalar:
    """A number of the graph that a step made.

    Attributes:
        edge: where it is in the graph.
        value: itself, then.
        names: the parts that it can be named as.
    """

    edge: GradientEdge
    value: float
    names: list[str] = field(default_factory=list)


class Probe:
    """What a step shows, within its context.

    Attributes:
        scalars: what is in the graph, in the order in which it was seen.
        logged: the keys that were logged, and why they name no part, if they are no tensors of the graph.
        guessed: names of which nobody knows whether it is these that a step has called.
    """

    def __init__(self, host: nn.Module) -> None:
        self._host = host
        self._paths: dict[int, str] = {}
        self._held: dict[CodeType, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._busy = False
        self.scalars: list[Scalar] = []
        self.logged: dict[str, str] = {}
        self.guessed: set[str] = set()
        self._follow = Follow()

    @contextmanager
    def on(self) -> Iterator[None]:
        """Look at what runs within."""
        self._paths, self._held = _paths_of(self._host), _held_functions(self._host)
        before = sys.getprofile()
        with self._follow, _Heard(self):
            sys.setprofile(self._returned)
            try:
                yield
            finally:
                sys.setprofile(before)

    def log(self, key: str, value: Any) -> None:
        """Take note of what is logged."""
        source = self._follow.source_of(value)
        grown = isinstance(value, Tensor) and value.requires_grad
        behind = isinstance(source, Tensor) and source.requires_grad
        kind = "a number" if isinstance(value, Tensor | float | int) else f"a {type(value).__name__}"
        kind = f"it is {kind}" if not behind else "it is logged as a number, unless you say follow=True"
        self.logged[key] = "" if grown else kind
        if behind:
            self.add(source, f"log:{key}")

    def add(self, value: Any, name: str) -> None:
        """Take note of a number, if it is one of the graph."""
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad or value.grad_fn is None:
            return
        edge = get_gradient_edge(value)
        known = next((scalar for scalar in self.scalars if scalar.edge == edge), None)
        if known is None:
            known = Scalar(edge, float(value.detach()))
            self.scalars.append(known)
        if name not in known.names:
            known.names.append(name)

    def heard(self, function: Any, returned: Any) -> None:
        """Take note of what a function of torch returns."""
        name = resolve_name(function)
        if name and not self._busy:
            number = self._number(name)
            if name.startswith("torch.nn.functional.") or name.split(".")[-1] in _REDUCTIONS:
                self.add(returned, f"function:{name}@{number}")

    def _number(self, name: str) -> int:
        self._counts[name] = self._counts.get(name, -1) + 1
        return self._counts[name]

    def _returned(self, frame: FrameType, event: str, returned: Any) -> None:
        if event != "return" or self._busy or frame.f_code.co_name in _CALLERS or returned is None:
            return
        self._busy = True
        try:
            sure = [f"{name}@{self._number(name)}" for name in self._names_of(frame)]
            held = [(name, self._number(name)) for name in self._held.get(frame.f_code, ())]
            guesses = [f"{name}@{number}" for name, last in held for number in range(min(last + 1, _GUESSES))]
            for entry, value in _entries(returned, 0):
                self.guessed.update(name + entry for name in guesses)
                for name in (*sure, *guesses):
                    self.add(value, name + entry)
        finally:
            self._busy = False

    def _names_of(self, frame: FrameType) -> Iterator[str]:
        """Yield how the call of a frame may be named."""
        code, owner = frame.f_code, frame.f_locals.get("self")
        path = self._paths.get(id(owner)) if owner is not None else None
        if path is not None and type(owner).__module__.split(".")[0] == "torchmetrics":
            return
        if path is not None:
            if code.co_name == "forward" and isinstance(owner, nn.Module) and path:
                yield f"call:{path}"
            if callable(getattr(type(owner), code.co_name, None)):
                yield f"call:{path}{'.' * bool(path)}{code.co_name}"
            return
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".")[0] in _OUTSIDE or code.co_name.startswith("<"):
            return
        with suppress(ValueError):
            found = Function(f"{module}.{code.co_name}").found()
            if getattr(found, "__code__", None) is code:
                yield f"function:{module}.{code.co_name}"


class _Heard(TorchFunctionMode):
    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self._probe = probe

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        self._probe.heard(func, returned)
        return returned


def _paths_of(host: nn.Module) -> dict[int, str]:
    """Return the paths of modules, and of other objects that the host holds, by id."""
    paths = {id(part): path for path, part in host.named_modules()}
    for name, value in held_by(host):
        paths.setdefault(id(value), name)
    return paths


def _held_functions(host: nn.Module) -> dict[CodeType, list[str]]:
    """Return the paths of functions that a host holds, itself or in a list or dict, by the code that they run."""
    held: dict[CodeType, list[str]] = {}
    for name, value in vars(host).items():
        if name.startswith("_"):
            continue
        inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if type(value) is list else ()
        keyed = [(f"{name}[{key!r}]", one) for key, one in inner if type(key) in (str, int) and "'" not in str(key)]
        for path, function in [(name, value), *keyed]:
            while isinstance(function, partial):
                function = function.func
            code = getattr(function, "__code__", None)
            if isinstance(code, CodeType):
                held.setdefault(code, []).append(f"call:{path}")
    return held


def _entries(returned: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield the numbers in what a call returns, each with where it stands there."""
    if isinstance(returned, Tensor):
        yield "", returned
        return
    if depth == _DEEP:
        return
    inner: list[tuple[str, Any]] = []
    if isinstance(returned, Mapping):
        inner = [
            (f"[{(str.__str__(key) if isinstance(key, str) else key)!r}]", value)
            for key, value in returned.items()
            if isinstance(key, str | int)
        ]
    elif isinstance(returned, tuple | list):
        inner = [(f"[{index}]", value) for index, value in enumerate(returned[:16])]
    elif not isinstance(returned, nn.Module) and hasattr(returned, "__dict__"):
        inner = [(f".{name}", value) for name, value in vars(returned).items() if name.isidentifier()]
    for entry, value in inner:
        if isinstance(value, Tensor | Mapping | tuple | list):
            yield from ((entry + within, found) for within, found in _entries(value, depth + 1))
