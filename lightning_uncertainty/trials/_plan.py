"""A trial to be run, or found."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    """

    name: str
    task: str | None
    seed: int
    given: NewWeighting = field(repr=False)
    weighting: str

    @property
    def key(self) -> list[str | int | None]:
        """What tells it from other trials of the folder."""
        return [self.name, self.task, self.seed]

    def __str__(self) -> str:
        return f"{self.name if self.task is None else f'{self.name} {self.task}'}, seed {self.seed}"
