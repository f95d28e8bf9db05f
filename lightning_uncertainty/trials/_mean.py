"""Numbers over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lightning_uncertainty.trials._student import two_sided_p, two_sided_t

__all__ = ["MOST_SEEDS", "Lead", "Mean"]

MOST_SEEDS = 1000


@dataclass(frozen=True)
class Mean:
    """Mean and sample standard deviation over seeds.

    Attributes:
        mean: over seeds.
        std: NaN where there is one seed.
        values: of each seed, in order.
    """

    mean: float
    std: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Mean:
        """Return that of some numbers."""
        values = tuple(values)
        mean, freedom = sum(values) / len(values), len(values) - 1
        std = math.sqrt(sum((value - mean) ** 2 for value in values) / freedom) if freedom else math.nan
        return cls(mean, std, values)

    @property
    def interval(self) -> float:
        r"""Half the width of the 95 % interval of the mean, :math:`t_{n-1} s / \sqrt n`; NaN of one seed."""
        count = len(self.values)
        return two_sided_t(0.05, count - 1) * self.std / math.sqrt(count) if count > 1 else math.nan

    def text(self, spec: str = ".4g", seeds: int | None = None) -> str:
        """Return the mean, its interval, and the number of seeds unless it is this."""
        short = f"{self.interval:.2g}" if self.interval < 100 else f"{self.interval:.0f}"
        interval = "" if math.isnan(self.interval) else f" ± {short}"
        count = "" if seeds in (None, len(self.values)) else f" (n={len(self.values)})"
        return f"{self.mean:{spec}}{interval}{count}"


@dataclass(frozen=True)
class Lead:
    """How far one is ahead of another, by seeds that both have.

    Attributes:
        mean: of the differences; None where there are none.
    """

    mean: Mean | None

    @classmethod
    def of(cls, ours: Mapping[int, float], theirs: Mapping[int, float]) -> Lead:
        """Return that of numbers by seed."""
        seeds = [seed for seed in ours if seed in theirs]
        return cls(Mean.of(ours[seed] - theirs[seed] for seed in seeds) if seeds else None)

    @property
    def p(self) -> float:
        """That of a paired t-test, two-sided; 1 for fewer than two seeds and where a number is NaN."""
        if self.mean is None or len(self.mean.values) < 2 or math.isnan(self.mean.std):
            return 1.0
        if self.mean.std == 0:
            return 0.0 if self.mean.mean else 1.0
        count = len(self.mean.values)
        return two_sided_p(self.mean.mean * math.sqrt(count) / self.mean.std, count - 1)

    def seeds_needed(self) -> int | None:
        """Return how many seeds a test at 5 % would take to see such a lead in four of five cases.

        None where that cannot be said: of one seed, or without a lead; `MOST_SEEDS` where it is more.
        """
        if self.mean is None or math.isnan(self.mean.std) or not self.mean.mean:
            return None
        if self.mean.std == 0:
            return 2
        effect = abs(self.mean.mean) / self.mean.std
        for count in range(2, MOST_SEEDS):
            if effect * math.sqrt(count) >= two_sided_t(0.05, count - 1) + two_sided_t(0.4, count - 1):
                return count
        return MOST_SEEDS
