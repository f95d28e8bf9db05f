"""What one step of a host shows of its parts: tensors of the graph, and weights as leaves of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lightning_uncertainty.adoption._functions import Follow, TorchFunctions, is_of_torch, patched
from lightning_uncertainty.adoption._paths import fetch, replaced
from lightning_uncertainty.adoption._weights import WeightLeaves
from lightning_uncertainty.adoption.parts import Call, Function, HostWeight, Logged, Part

__all__ = ["STEP", "Sight", "Watch"]

OfKind = TypeVar("OfKind", bound=Part)

STEP = "training_step"
"""A call that the adopted class shows by itself."""


class Sight(NamedTuple):
    """A tensor that was seen: where it is in the graph, and its value then, as hosts add in place later.

    Attributes:
        edge: None in evaluation.
        value: 0-dimensional.
    """

    edge: GradientEdge | None
    value: Tensor


class Watch:
    """Watches one step of a host, within its context; what it saw is there until `clear`.

    Attributes:
        sights: by task, in the order in which they were seen.
        useless: by task, in words, what was seen that is no tensor of the graph.
        weights: the leaves in place of host weights.
    """

    def __init__(
        self, host: nn.Module, parts: Mapping[str, Part], *, follow: bool = False, evaluating: bool = False
    ) -> None:
        self._host, self._parts, self._evaluating = host, parts, evaluating
        self._stack = ExitStack()
        self._logged = {part.key: task for task, part in parts.items() if isinstance(part, Logged)}
        self._follow = Follow() if follow else None
        self._resting = False
        self.sights: dict[str, list[Sight]] = {}
        self.useless: dict[str, str] = {}

    def __enter__(self) -> Watch:
        with ExitStack() as stack:
            self.weights = WeightLeaves(self._host, _of_kind(self._parts, HostWeight), stack)
            for task, part in _of_kind(self._parts, Call).items():
                if part.path != STEP:
                    stack.enter_context(self._calls(task, part))
            functions: dict[Callable[..., Any], list[tuple[str, Function]]] = {}
            for task, function in _of_kind(self._parts, Function).items():
                functions.setdefault(function.found(), []).append((task, function))
            of_torch = {found: wanted for found, wanted in functions.items() if is_of_torch(found)}
            for found, wanted in functions.items():
                if found not in of_torch:
                    stack.enter_context(patched(found, self._recording(found, wanted)))
            if of_torch:
                stack.enter_context(
                    TorchFunctions({found: self._counter(wanted) for found, wanted in of_torch.items()})
                )
            if self._follow is not None:
                stack.enter_context(self._follow)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    @contextmanager
    def resting(self) -> Iterator[None]:
        """See nothing within: a backward may compute a step's parts again."""
        self._resting = True
        try:
            yield
        finally:
            self._resting = False

    def see_logged(self, key: str, value: Any) -> None:
        """Take note of what a host logs."""
        if key in self._logged:
            source = value if self._follow is None else self._follow.source_of(value)
            self._see(self._logged[key], source)

    def see_step(self, returned: Any) -> None:
        """Take note of what the step itself returns."""
        for task, part in _of_kind(self._parts, Call).items():
            if part.path == STEP:
                self._see_entry(task, part, returned)

    def reached(self, task: str) -> bool:
        """Whether anything of a task was seen."""
        return task in self.sights or task in self.useless

    def _see(self, task: str, value: Any) -> None:
        if self._resting:
            return
        if self._evaluating:
            if isinstance(value, Tensor):
                self._add(task, None, value.detach().as_subclass(Tensor))
            elif isinstance(value, float | int):
                self._add(task, None, torch.tensor(float(value), dtype=torch.float32))
            return
        if not isinstance(value, Tensor) or not value.requires_grad:
            kind = type(value).__name__
            self.useless[task] = f"a {kind} without graph" if isinstance(value, Tensor) else f"a {kind}"
            return
        edge = get_gradient_edge(value)
        if not any(seen.edge == edge for seen in self.sights.get(task, ())):  # logged twice, or handed on
            self._add(task, edge, value.as_subclass(Tensor).clone())

    def _add(self, task: str, edge: GradientEdge | None, value: Tensor) -> None:
        if value.numel() != 1:
            raise RuntimeError(
                f"'{self._parts[task]}', the part of task {task!r}, should be one number: found shape "
                f"{list(value.shape)}; name an entry of it, or what the host makes of it"
            )
        self.sights.setdefault(task, []).append(Sight(edge, value.reshape(())))

    def _see_entry(self, task: str, part: Call, returned: Any) -> None:
        what = f"the entry of '{part}', the part of task {task!r},"
        self._see(task, fetch(returned, part.entries, what) if part.entries else returned)

    @contextmanager
    def _calls(self, task: str, part: Call) -> Iterator[None]:
        what = f"'{part}', the part of task {task!r},"
        target = fetch(self._host, part.keys, what)
        count = -1

        def record(returned: Any) -> None:
            nonlocal count
            count += not self._resting
            if part.n in (None, count) and not self._resting:
                self._see_entry(task, part, returned)

        if isinstance(target, nn.Module):
            handle = target.register_forward_hook(lambda module, args, returned: record(returned))
            try:
                yield
            finally:
                handle.remove()
            return
        if not callable(target):
            raise RuntimeError(f"{what} should be something that is called: found a {type(target).__name__}")

        @wraps(target)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            returned = target(*args, **kwargs)
            record(returned)
            return returned

        with replaced(self._host, part.keys, recorded, what):
            yield

    def _counter(self, wanted: list[tuple[str, Function]]) -> Callable[[Any], None]:
        """Return what sees the results of a function, call by call."""
        count = -1

        def record(returned: Any) -> None:
            nonlocal count
            if self._resting:
                return
            count += 1
            for task, part in wanted:
                if part.n in (None, count):
                    self._see(task, returned)

        return record

    def _recording(self, function: Callable[..., Any], wanted: list[tuple[str, Function]]) -> Callable[..., Any]:
        record = self._counter(wanted)

        @wraps(function)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            returned = function(*args, **kwargs)
            record(returned)
            return returned

        return recorded


def _of_kind(parts: Mapping[str, Part], kind: type[OfKind]) -> dict[str, OfKind]:
    return {task: part for task, part in parts.items() if isinstance(part, kind)}
