"""Numbers over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Mean"]

T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's t, two-sided 5 %, by degrees of freedom


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

    def text(self, spec: str = ".4g") -> str:
        """Return the mean, and what it varies by."""
        return f"{self.mean:{spec}}" + ("" if math.isnan(self.std) else f" ± {self.std:.2g}")

    def near(self, other: Mean) -> bool:
        """Whether the differences by seed could be chance: a paired t-test at 5 %; False for other numbers of seeds."""
        if len(self.values) != len(other.values):
            return False
        lead = Mean.of(a - b for a, b in zip(self.values, other.values, strict=True))
        count = len(lead.values)
        return abs(lead.mean) <= T_95[min(count - 1, len(T_95)) - 1] * lead.std / math.sqrt(count)
