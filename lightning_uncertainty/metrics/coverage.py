"""Whether labels fall into predictive intervals as often as these say."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_uncertainty._show import unit_axes
from lightning_uncertainty.metrics._predictive import Distribution, check_distribution, observed_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["IntervalCoverage"]


class IntervalCoverage(Metric):
    r"""Share of labels inside the central predictive interval of each level: calibrated where it is that level.

    .. math::

        |y - \mu| \le q \sigma, \qquad
        q = \Phi^{-1}\left(\frac{1 + p}{2}\right) \text{ (gaussian)}, \quad
        q = -\frac{\log(1 - p)}{\sqrt 2} \text{ (laplace)}

    for a level p. Below its level, σ is too small. With σ = 0 the interval is the point μ. The value is a dictionary
    with a number for each level, `coverage_90` for 0.9; an empty one where no label was observed; and NaN throughout
    where a prediction was.

    Args:
        levels: probabilities of the intervals, between 0 and 1.
        distribution: of the label around its mean; σ is the standard deviation of either.

    Raises:
        ValueError: a level is not between 0 and 1, stands twice or there is none, or there is no such distribution.

    Source: Gneiting, Balabdaoui & Raftery, "Probabilistic Forecasts, Calibration and Sharpness", JRSS B 2007.

    Example:
        >>> metric = IntervalCoverage(levels=[0.5, 0.95])
        >>> metric.update(torch.zeros(4), torch.ones(4), torch.tensor([0.0, 0.6, -1.0, 1.9]))
        >>> metric.compute()
        {'coverage_50': tensor(0.5000), 'coverage_95': tensor(1.)}
    """

    full_state_update = False
    covered: Tensor
    count: Tensor
    undefined: Tensor

    def __init__(
        self, levels: Iterable[float] = (0.5, 0.68, 0.9, 0.95), distribution: Distribution = "gaussian"
    ) -> None:
        check_distribution(distribution)
        self.levels = tuple(levels)
        if not self.levels or len(set(self.levels)) < len(self.levels) or not all(0 < p < 1 for p in self.levels):
            found = ", ".join(f"{level:g}" for level in self.levels) or "none"
            raise ValueError(f"levels should be between 0 and 1, once each: found {found}; give one at least, as 0.9")
        super().__init__()
        self.distribution = distribution
        self._add_counts("covered", len(self.levels))
        self._add_counts("count")
        self._add_counts("undefined")

    def update(self, mean: Tensor, std: Tensor, target: Tensor) -> None:
        """Add predictions and labels, all in units of the label.

        Args:
            mean: `[...]`.
            std: standard deviation σ `[...]`, or what broadcasts to the shape of the labels.
            target: labels `[...]`; NaN where missing.

        Raises:
            ValueError: shapes do not fit, or a standard deviation is negative or NaN (eager CPU).
        """
        error, std, observed = observed_errors(mean, std, target, positive=False)
        self.covered += torch.stack([((error.abs() <= width * std) & observed).sum() for width in self._widths()])
        self.count += observed.sum()
        self.undefined += (error.isnan() | std.isnan()).sum()

    def compute(self) -> dict[str, Tensor]:
        if self.count == 0:
            return {}
        shares = torch.where(self.undefined > 0, math.nan, self.covered / self.count)
        return {f"coverage_{100 * level:g}": share for level, share in zip(self.levels, shares, strict=True)}

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Axes]:  # type: ignore[override]
        """Draw observed against nominal coverage, into axes or a new figure; return both.

        Raises:
            ValueError: no label was observed.
            ModuleNotFoundError: matplotlib is not installed.
        """
        shares = self.compute()
        if not shares:
            raise ValueError("a plot should be of observed labels: found none; update the metric first")
        figure, ax = unit_axes(ax, "nominal coverage", "observed coverage")
        points = sorted(zip(self.levels, [share.item() for share in shares.values()], strict=True))
        ax.plot(*zip(*points, strict=True), "o-", label=f"intervals ({self.distribution})")
        ax.legend()
        return figure, ax

    def _widths(self) -> list[float]:
        """Half the width of the interval of each level, in standard deviations."""
        if self.distribution == "gaussian":
            return [NormalDist().inv_cdf((1 + level) / 2) for level in self.levels]
        return [-math.log1p(-level) / math.sqrt(2) for level in self.levels]

    def _add_counts(self, name: str, *shape: int) -> None:
        self.add_state(name, torch.zeros(shape, dtype=torch.int64, device="cpu"), dist_reduce_fx="sum")
