"""What is kept of one fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["ENDED_EARLY", "FAILED", "FINISHED", "Trial"]

FINISHED, FAILED, ENDED_EARLY = "finished", "failed", "ended early"


@dataclass(frozen=True)
class Trial:
    """What is kept of one fit: numbers and names.

    Attributes:
        name: of the weighting.
        task: the only one that was trained; None for all.
        seed: of the fit.
        weighting: its `repr`.
        rows: for every validation what was logged, by log key, and the epoch.
        higher_is_better: by log key, of the metrics that the tasks own.
        step_time: median seconds of a training batch.
        peak_memory: bytes on a CUDA device at most; None elsewhere.
        state: "finished", "failed", or "ended early", as by a pruner.
        error: what a failed fit raised, in a few words.
        traceback: of that.
        attempt: how many fits it took to come to this state.
        settings: what `make` was given besides the weighting, by name, as text.
        test: what was found on the test data after the fit, by log key; empty where it was not looked at.
        labels: names of metrics by log key, where their classes are named otherwise, as "RMSE".
    """

    name: str
    task: str | None
    seed: int
    weighting: str
    rows: list[dict[str, float]]
    higher_is_better: Mapping[str, bool | None]
    step_time: float | None
    peak_memory: int | None
    state: str = FINISHED
    error: str | None = None
    traceback: str | None = None
    attempt: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Trial:
        """Return what a file holds, of whatever version.

        Raises:
            TypeError: it holds no trial.
        """
        return cls(**{known.name: found[known.name] for known in fields(cls) if known.name in found})

    @property
    def failed(self) -> bool:
        """Whether the fit raised an error."""
        return self.state == FAILED

    def row(self, best_by: str | None = None) -> dict[str, float]:
        """Return the last row, or that at the best of a log key; a trial of one task goes by this task's loss.

        The last has what was found on the test data, too.

        Raises:
            ValueError: it was never logged.
        """
        if best_by is None:
            return {**self.rows[-1], **self.test}
        key = self.judged_by(best_by)
        rows = [row for row in self.rows if key in row]
        if not rows:
            raise ValueError(f"best_by should be a log key of every validation: found {', '.join(self.rows[-1])}")
        return min(rows, key=lambda row: self.badness(row, key))

    def judged_by(self, key: str) -> str:
        """Return a log key, or that of the own loss of a trial of one task."""
        return key if self.task is None else f"val/{self.task}/loss"

    def badness(self, row: Mapping[str, float], key: str) -> float:
        """Return what is the lower the better a row is by a log key; infinite for NaN."""
        sign = -1 if self.higher_is_better.get(key) else 1
        return math.inf if math.isnan(row[key]) else sign * row[key]
