"""How a part of a host's loss is named: by what is logged, by a weight, by a call, by a function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar

from lightning_uncertainty.adoption._paths import Keys, keys_of

__all__ = ["Call", "Function", "HostWeight", "Logged", "Part"]


@dataclass(frozen=True)
class Part(ABC):
    """A part of a host's loss. Each can be written as a string, as in YAML; `str` gives it back."""

    kind: ClassVar[str]

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def overlaps(self, other: Part) -> bool:
        """Whether the other may be of the same tensor or number."""


@dataclass(frozen=True)
class Logged(Part):
    """The loss that the host logs in its step under a key; `log:train/depth_loss`.

    Where the tensor that is logged enters the total itself. One that is a copy, a number, or computed anew for the log
    has no gradient from the total; `adopt(..., follow=True)` finds the loss behind `detach()` and `item()`.

    Args:
        key: as the host gives it to `self.log` or `self.log_dict`, without Lightning's "_step" and "_epoch".

    Example:
        >>> str(Logged("train/depth_loss"))
        'log:train/depth_loss'
    """

    kind: ClassVar[str] = "log"
    key: str

    def __str__(self) -> str:
        return f"log:{self.key}"

    def overlaps(self, other: Part) -> bool:
        """Whether the other is of the same key."""
        return self == other


@dataclass(frozen=True)
class HostWeight(Part):
    """The loss that a weight of the host's multiplies; `weight:outputs[0].loss_weight`, `weight:loss.weights[1]`.

    The loss is `d total / d weight`, so the weight is no part of it. A tensor of weights is named by element.

    Args:
        path: where the weight stands in the host, a Python number or a tensor that is not trained.

    Raises:
        ValueError: it is no path.

    Example:
        >>> str(HostWeight("criterion.task_weights[1]"))
        'weight:criterion.task_weights[1]'
    """

    kind: ClassVar[str] = "weight"
    path: str

    def __post_init__(self) -> None:
        self.keys  # noqa: B018 - a path that cannot be read is told at once

    @cached_property
    def keys(self) -> Keys:
        """The path, key by key."""
        return keys_of(self.path, "the path of a weight")

    def __str__(self) -> str:
        return f"weight:{self.path}"

    def overlaps(self, other: Part) -> bool:
        """Whether the other is of the same weight."""
        return isinstance(other, HostWeight) and self.keys == other.keys


@dataclass(frozen=True)
class Call(Part):
    """The loss that a call returns, of a module, method or function of the host's; `call:criterion@1['loss_bbox']`.

    Args:
        path: what is called; `training_step` is the step itself.
        n: which of its calls in a step, from 0; None for all, whose losses are averaged by the weights they have.
        entry: where the loss stands in what the call returns, as `['loss_bbox']` or `.loss_dict['giou']`; empty for
            the whole.

    Raises:
        ValueError: a path cannot be read, or `n` is negative.

    Example:
        >>> str(Call("criterion", 1, "['loss_bbox']"))
        "call:criterion@1['loss_bbox']"
    """

    kind: ClassVar[str] = "call"
    path: str
    n: int | None = None
    entry: str = ""

    def __post_init__(self) -> None:
        _check_number(self.n)
        self.keys, self.entries  # noqa: B018 - a path that cannot be read is told at once

    @cached_property
    def keys(self) -> Keys:
        """The path, key by key."""
        return keys_of(self.path, "the path of a call")

    @cached_property
    def entries(self) -> Keys:
        """The entry, key by key."""
        return keys_of(self.entry.removeprefix("."), "the entry of a call") if self.entry else ()

    def __str__(self) -> str:
        number = "" if self.n is None else self.n
        return f"call:{self.path}{f'@{number}' if number != '' or self.entry else ''}{self.entry}"

    def overlaps(self, other: Part) -> bool:
        """Whether the other is of the same call and entry."""
        return (
            isinstance(other, Call)
            and (self.keys, self.entries) == (other.keys, other.entries)
            and (self.n is None or other.n is None or self.n == other.n)
        )


@dataclass(frozen=True)
class Function(Part):
    """The loss that a function returns; `function:torch.nn.functional.mse_loss@1`.

    Args:
        name: the function's dotted name, of torch or of any other module, as `torch.Tensor.mean`.
        n: which of its calls in a step, from 0; None for all, whose losses are averaged by the weights they have.

    Raises:
        ValueError: there is no such function, or `n` is negative.

    Example:
        >>> str(Function("torch.nn.functional.mse_loss", 0))
        'function:torch.nn.functional.mse_loss@0'
    """

    kind: ClassVar[str] = "function"
    name: str
    n: int | None = None

    def __post_init__(self) -> None:
        _check_number(self.n)
        self.found()

    def found(self) -> Any:
        """Return the function.

        Raises:
            ValueError: there is none.
        """
        names = self.name.split(".")
        for end in range(len(names) - 1, 0, -1):
            try:
                found: Any = import_module(".".join(names[:end]))
                for name in names[end:]:
                    found = getattr(found, name)
            except (ImportError, AttributeError, ValueError):
                continue
            if callable(found):
                return found
        raise ValueError(
            "a function should be given by its dotted name, as in 'torch.nn.functional.mse_loss': found "
            f"{self.name!r}, which cannot be imported"
        )

    def __str__(self) -> str:
        return f"function:{self.name}{'' if self.n is None else f'@{self.n}'}"

    def overlaps(self, other: Part) -> bool:
        """Whether the other is of the same function and call."""
        return (
            isinstance(other, Function)
            and self.found() is other.found()
            and (self.n is None or other.n is None or self.n == other.n)
        )


def _check_number(n: int | None) -> None:
    if n is not None and (not isinstance(n, int) or n < 0):
        raise ValueError(f"the number of a call should be 0, 1, ... or None for all: found {n!r}")
