"""A trial to be run, or found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_uncertainty.trials._setup import text_of
from lightning_uncertainty.trials.fit import NewWeighting

__all__ = ["Plan"]


@dataclass(frozen=True, eq=False)
class Plan:
    """A trial to be run, or found.

    Attributes:
        name: of the weighting.
        task: the only one that is trained; None for all.
        seed: of the fit.
        given: what makes the weighting.
        weighting: its `repr`.
        settings: what `make` is given besides, by name.
    """

    name: str
    task: str | None
    seed: int
    given: NewWeighting = field(repr=False)
    weighting: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> list[Any]:
        """What tells it from other trials of the folder."""
        given = {name: text_of(value) for name, value in sorted(self.settings.items())}
        return [self.name, self.task, self.seed, *([given] if given else [])]

    @property
    def of(self) -> tuple[str, str | None]:
        """What is trained: weighting and task."""
        return self.name, self.task

    def at(self, settings: Mapping[str, Any]) -> Plan:
        """Return it at other settings."""
        return replace(self, settings=settings)

    def __str__(self) -> str:
        name = self.name if self.task is None else f"{self.name} {self.task}"
        return ", ".join(
            [name, *(f"{key}={text_of(value)}" for key, value in self.settings.items()), f"seed {self.seed}"]
        )
