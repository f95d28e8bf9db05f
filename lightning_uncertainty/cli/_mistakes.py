"""What the command line says where something is wrong."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any

from lightning_uncertainty import balancing, weightings
from lightning_uncertainty.callbacks import UncertaintyMonitor
from lightning_uncertainty.module import MultiTaskModule
from lightning_uncertainty.tasks import Task
from lightning_uncertainty.weightings import Weighting

__all__ = ["errors_as_sentences", "readable"]

_NOISE = re.compile(
    r"\s*(- )?(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value type: .*"
    r"|Expected a <class 'NoneType'>|Expected a path but .* either not accessible or invalid|)"
)
_CALLABLE = re.compile(r"Type .*Callable.* expects a function or a callable class: ")


def readable(message: str, model: Callable[..., Any] | None = MultiTaskModule) -> str:
    """Return jsonargparse's message without what it tried in vain, and with the names that there are.

    Args:
        message: as jsonargparse writes it.
        model: class, or function, whose arguments stand below `model`; None where it is not known.

    Example:
        >>> print(readable('''Parser key "model.inputs":
        ...   Does not validate against any of the Union subtypes
        ...   Errors:
        ...     - Expected a <class 'str'>
        ...     - Expected a <class 'NoneType'>'''))
        Parser key "model.inputs":
            - Expected a <class 'str'>
        a configuration that works: lightning-uncertainty example
    """
    lines = dict.fromkeys(line.rstrip() for line in message.splitlines() if not _NOISE.fullmatch(line))
    text = _CALLABLE.sub("", "\n".join(lines))
    works = "a configuration that works: lightning-uncertainty example"
    known = [*_where_to_look(message), *_known_names(message, model)]
    return "\n".join([text, *known, *([works] if model is MultiTaskModule else [])])


def _known_names(message: str, model: Callable[..., Any] | None) -> Iterator[str]:
    """Yield what may stand where the message found something else."""
    groups = {"model": model, "monitor": UncertaintyMonitor}
    for group, kind in groups.items():
        options = inspect.signature(kind).parameters if kind is not None else {}
        found = re.search(rf"\b{group}\.(?:init_args\.)?(\w+)", message)
        found = re.search(rf"key \"{group}\":.*Option '(\w+)' is not accepted", message, re.DOTALL) or found
        if options and found and found[1] not in options:
            yield f"{group} has: {', '.join(options)}"
    if "model.tasks" in message:
        yield f"a task has: {', '.join(inspect.signature(Task).parameters)}"
    if re.search(r'(\.|")weightings?\b', message):
        kinds = {name: getattr(room, name) for room in (weightings, balancing) for name in room.__all__}
        known = [name for name, kind in kinds.items() if _can_be_used(kind, Weighting)]
        solvers = {kind.__name__: name for name, kind in balancing.SOLVERS.items()}
        solvers |= {name: name for name in balancing.SOLVERS}
        words = [word for line in message.splitlines() for word in re.findall(r"\w+", line)[-1:]]
        given = next((word for word in words if word in solvers), None)
        if given:
            of = f"{{class_path: lightning_uncertainty.GradientBalancing, init_args: {{solver: {solvers[given]}}}}}"
            yield f"{given} is a solver, of the weighting {of}"
        yield f"weightings: {', '.join(sorted(known))}"


def _where_to_look(message: str) -> Iterator[str]:
    """Yield where a module should be that was not found; what that imports in its turn is another matter."""
    found = re.search(r"'([\w.]+)':\s+No module named '([\w.]+)'", message)
    if found and f"{found[1]}.".startswith(f"{found[2]}."):
        name = found[2].partition(".")[0]
        yield f"a module {name} should be in the current folder, {Path.cwd()}, on PYTHONPATH, or installed"


def _can_be_used(kind: Any, contract: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, contract) and not inspect.isabstract(kind)


@contextmanager
def errors_as_sentences(*kinds: type[Exception]) -> Iterator[None]:
    """Exit with the message of an error that this package raised, which says all; others keep their traceback."""
    try:
        yield
    except kinds as error:
        ours: BaseException | None = error
        while ours is not None and not _raised_here(ours):
            ours = ours.__cause__  # jsonargparse wraps what a constructor raises
        if ours is None:
            raise
        raise SystemExit(str(ours)) from None


def _raised_here(error: BaseException) -> bool:
    *_, (frame, _) = walk_tb(error.__traceback__)
    module: str = frame.f_globals["__name__"]
    return module.startswith("lightning_uncertainty.")
