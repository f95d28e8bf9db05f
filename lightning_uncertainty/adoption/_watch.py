"""What one step of a host shows of its parts: tensors of the graph, and weights as leaves of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from difflib import get_close_matches
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torchmetrics import Metric

from lightning_uncertainty.adoption._functions import Follow, TorchFunctions, is_of_torch, patched
from lightning_uncertainty.adoption._paths import fetch, replaced
from lightning_uncertainty.adoption._saying import saying
from lightning_uncertainty.adoption._weights import WeightLeaves, numbers_of
from lightning_uncertainty.adoption.parts import Call, Function, HostWeight, Logged, Part

__all__ = ["STEP", "Plan", "Sight", "Watch"]

OfKind = TypeVar("OfKind", bound=Part)

STEP = "training_step"
"""A call that the adopted class shows by itself."""


_MOST = 64
"""Keys that are remembered for what is said."""


class Sight(NamedTuple):
    """A tensor that was seen: where it is in the graph, and its value then, as hosts add in place later.

    Attributes:
        edge: None in evaluation.
        value: 0-dimensional.
    """

    edge: GradientEdge | None
    value: Tensor


class Plan:
    """What a step is watched for; it is made once, and no part of a graph."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.parts = parts
        self.logged = {part.key: task for task, part in _of_kind(parts, Logged).items()}
        self.weights = _of_kind(parts, HostWeight)
        calls = _of_kind(parts, Call)
        self.calls = [(task, part) for task, part in calls.items() if part.path != STEP]
        self.of_step = [(task, part) for task, part in calls.items() if part.path == STEP]
        self.torch_functions: dict[Callable[..., Any], list[tuple[str, Function]]] = {}
        self.functions: dict[Callable[..., Any], list[tuple[str, Function]]] = {}
        for task, part in _of_kind(parts, Function).items():
            found = part.found()
            kind = self.torch_functions if is_of_torch(found) else self.functions
            kind.setdefault(found, []).append((task, part))
        self.heard: set[str] = set()
        self._like: tuple[Any, Tensor] | None = None

    def like(self, host: nn.Module) -> Tensor | None:
        """Return a tensor as the host's numbers are, for its weights; a walk through a whole model is not free."""
        if not self.weights:
            return None
        key = getattr(host, "device", None), getattr(host, "dtype", None)
        if self._like is None or self._like[0] != key:
            self._like = key, numbers_of(host).new_empty(())
        return self._like[1]


class Watch:
    """Watches one step of a host, within its context; what it saw is there until the next.

    Attributes:
        sights: by task, in the order in which they were seen.
        useless: by task, in words, what was seen that is no tensor of the graph.
        weights: the leaves in place of host weights.
    """

    def __init__(self, host: nn.Module, plan: Plan, *, follow: bool = False, evaluating: bool = False) -> None:
        self._host, self._plan, self._evaluating = host, plan, evaluating
        self._follow = Follow() if follow else None
        self._resting = False
        self.sights: dict[str, list[Sight]] = {}
        self.useless: dict[str, str] = {}

    def __enter__(self) -> Watch:
        plan = self._plan
        with ExitStack() as stack:
            self.weights = WeightLeaves(self._host, plan.weights, stack, plan.like(self._host))
            for task, part in plan.calls:
                self._hear(task, part, stack)
            for found, wanted in plan.functions.items():
                stack.enter_context(patched(found, self._recording(found, wanted)))
            if plan.torch_functions:
                records = {found: self._counter(wanted) for found, wanted in plan.torch_functions.items()}
                stack.enter_context(TorchFunctions(records))
            if self._follow is not None:
                stack.enter_context(self._follow)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def told(self) -> AbstractContextManager[None]:
        """Within, errors of torch's say what they mean for the parts."""
        return saying(self._plan.parts, self._plan.weights)

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
        task = self._plan.logged.get(key)
        if len(self._plan.heard) < _MOST:
            self._plan.heard.add(key)
        if task is not None:
            self._see(task, value if self._follow is None else self._follow.source_of(value))

    def near(self, key: str) -> list[str]:
        """Return keys that the host logs, those like another first."""
        return get_close_matches(key, sorted(self._plan.heard), 5, 0.0)

    def see_step(self, returned: Any) -> None:
        """Take note of what the step itself returns."""
        for task, part in self._plan.of_step:
            self._see_entry(task, part, returned)

    def named(self, task: str) -> str:
        """Return how a task's part is named."""
        return f"'{self._plan.parts[task]}', the part of task {task!r}"

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
            why = " without graph" if isinstance(value, Tensor) else ", a metric" if isinstance(value, Metric) else ""
            self.useless[task] = f"a {kind}{why}"
            return
        edge = get_gradient_edge(value)
        if not any(seen.edge == edge for seen in self.sights.get(task, ())):  # logged twice, or handed on
            plain = value if type(value) is Tensor else value.as_subclass(Tensor)
            self._add(task, edge, plain.clone())

    def _add(self, task: str, edge: GradientEdge | None, value: Tensor) -> None:
        if value.numel() != 1:
            raise RuntimeError(
                f"'{self._plan.parts[task]}', the part of task {task!r}, should be one number: found shape "
                f"{list(value.shape)}; name an entry of it, or what the host makes of it"
            )
        self.sights.setdefault(task, []).append(Sight(edge, value.reshape(()) if value.dim() else value))

    def _see_entry(self, task: str, part: Call, returned: Any) -> None:
        if part.entries:
            returned = fetch(returned, part.entries, f"the entry of '{part}', the part of task {task!r},")
        self._see(task, returned)

    def _see_returned(self, task: str, part: Call | Function, returned: Any) -> None:
        """Take note of what a call returned."""
        if isinstance(part, Call):
            self._see_entry(task, part, returned)
        else:
            self._see(task, returned)

    @torch.compiler.disable
    def _see_apart(self, task: str, part: Call | Function, returned: Any) -> None:
        """See outside of what a compiler makes of the call."""
        self._see_returned(task, part, returned)

    def _hear(self, task: str, part: Call, stack: ExitStack) -> None:
        """Hear what a call returns, until the stack is left."""
        what = f"{self.named(task)},"
        target = fetch(self._host, part.keys, what)
        count = -1

        def record(returned: Any) -> None:
            nonlocal count
            count += not self._resting
            if part.n in (None, count) and not self._resting:
                # an eager step is spared the detour
                see = self._see_apart if torch.compiler.is_compiling() else self._see_returned
                see(task, part, returned)

        if isinstance(target, nn.Module):
            handle = target.register_forward_hook(lambda module, args, returned: record(returned))
            stack.callback(handle.remove)
            return
        if not callable(target):
            raise RuntimeError(f"{what} should be something that is called: found a {type(target).__name__}")

        @wraps(target)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            returned = target(*args, **kwargs)
            record(returned)
            return returned

        stack.enter_context(replaced(self._host, part.keys, recorded, what))

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
                    self._see_apart(task, part, returned)

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
