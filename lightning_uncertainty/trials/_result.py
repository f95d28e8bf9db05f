"""What a weighting comes to in a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_uncertainty.trials._mean import Mean
from lightning_uncertainty.trials._measures import Measure

__all__ = ["Result"]


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
