"""What a weighting comes to in a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_uncertainty.trials._mean import Mean
from lightning_uncertainty.trials._measures import Measure
from lightning_uncertainty.trials._trial import Trial

__all__ = ["Result", "failures_of", "settings_of"]


@dataclass(frozen=True)
class Result:
    """What a weighting comes to.

    Attributes:
        name: of the weighting.
        values: by measure, those that its trials have.
        gain: in percent over what the baseline comes to with the same seed, + is better; None without a baseline.
        rank: mean rank among the weightings, 1 the best, of the seeds that all of them have; None for the single tasks,
            which are not ranked.
        step_time: median seconds of a training batch.
        peak_memory: bytes on a CUDA device at most; None elsewhere.
        failed: how many of its trials failed, and why; empty where none did.
        ranks: over seeds.
        gains: by seed.
        gain_alone: over single tasks under the same weighting, where they were trained; None elsewhere.
        settings: those it was fitted at, where there were several to choose from.
    """

    name: str
    values: dict[Measure, Mean]
    gain: Mean | None
    rank: float | None
    step_time: float | None
    peak_memory: int | None
    failed: str = ""
    ranks: Mean | None = None
    gains: Mapping[int, float] = field(default_factory=dict)
    gain_alone: Mean | None = None
    settings: str = ""


def settings_of(trials: Sequence[Trial]) -> str:
    """Return the settings of trials, those of single tasks with the task."""
    found = {
        " ".join([*([trial.task] if trial.task else []), *(f"{name}={text}" for name, text in trial.settings.items())])
        for trial in trials
        if trial.settings
    }
    return ", ".join(sorted(found))


def failures_of(trials: Sequence[Trial]) -> str:
    """Return what is to be said of those that failed, the commonest reason of them."""
    reasons = [trial.error or "" for trial in trials if trial.failed]
    if not reasons:
        return ""
    reason = max(dict.fromkeys(reasons), key=reasons.count)
    return f"failed: {reason}" if len(reasons) == len(trials) else f"{len(reasons)} of {len(trials)} failed: {reason}"
