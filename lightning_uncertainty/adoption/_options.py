"""What `adopt` is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_uncertainty.adoption.parts import Function, Part

__all__ = ["PLAIN", "Count", "Options", "asked"]

PLAIN = "plain"
"""What a rest is that is added as it is."""

Count = Callable[[Any], Any] | str | None


@dataclass(frozen=True)
class Options:
    """What `adopt` was asked for; equal ones are one adoption.

    Attributes:
        constants: the tasks that are constant terms.
    """

    tasks: tuple[str, ...]
    likelihoods: str
    parts: tuple[tuple[str, Part], ...]
    weighting: str
    rest: str | None
    count: Count
    divisor: Count
    keep_host_weights: bool
    constants: tuple[str, ...]
    may_be_absent: tuple[str, ...]
    follow: bool
    shared: tuple[str, ...]
    beside: str | None
    global_losses: bool
    validation: tuple[tuple[str, Part], ...]
    renamed: tuple[tuple[str, str], ...]
    on_nonfinite: str

    @property
    def kept(self) -> tuple[str, ...]:
        """The tasks in whose losses the host's weights stay."""
        return self.tasks if self.keep_host_weights else self.constants


def asked(count: Count, batch: Any) -> Any:
    """Return what a function, or one of that dotted name, makes of a batch."""
    if isinstance(count, str):
        count = Function(count).found()
    assert callable(count)
    return count(batch)
