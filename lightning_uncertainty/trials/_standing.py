"""How weightings stand by their measures, seed by seed: gains over a baseline, and ranks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_uncertainty.metrics import MeanRank, MultiTaskGain
from lightning_uncertainty.trials._measures import Measure
from lightning_uncertainty.trials._trial import Trial

__all__ = ["BySeed", "by_seed", "complete", "gains_over", "ranks_by_seed"]

BySeed = Mapping[int, Mapping[Measure, float]]


def by_seed(
    trials: Iterable[Trial], measures: Sequence[Measure], best_by: str | None
) -> dict[int, dict[Measure, float]]:
    """Return what finished trials come to, by seed and measure; those of one task count for it alone."""
    found: dict[int, dict[Measure, float]] = {}
    for trial in trials:
        if not trial.failed:
            row, own = trial.row(best_by), found.setdefault(trial.seed, {})
            for measure in measures:
                if trial.task in (None, measure.task):
                    own[measure] = row.get(measure.key, math.nan)
    return found


def complete(values: BySeed, counted: Sequence[Measure]) -> dict[int, Mapping[Measure, float]]:
    """Return the seeds that have all of the measures."""
    return {seed: own for seed, own in values.items() if all(measure in own for measure in counted)}


def gains_over(baseline: BySeed, values: BySeed, counted: Sequence[Measure]) -> dict[int, float]:
    """Return by seed the gain over what the baseline comes to with the same seed, in percent.

    Seeds are left out in which either is not complete, and, with a warning, those in which a measure of the baseline is
    zero or not finite, as a gain is relative to it.
    """
    gains, ours, left = {}, complete(values, counted), []
    for seed, base in complete(baseline, counted).items():
        if seed not in ours:
            continue
        if any(base[measure] == 0 or not math.isfinite(base[measure]) for measure in counted):
            left.append(seed)
            continue
        metric = MultiTaskGain(_nested({measure: base[measure] for measure in counted}), _directions(counted))
        metric.update(_nested({measure: ours[seed][measure] for measure in counted}))
        gains[seed] = round(metric.compute().item(), 4)  # what float32 can tell
    if left:
        warnings.warn(
            f"a baseline should be finite and not zero, as gains are relative to it: found otherwise with seeds "
            f"{left}, which are left out of the gain; choose other metrics, or another baseline",
            stacklevel=2,
        )
    return gains


def ranks_by_seed(values: Mapping[str, BySeed], counted: Sequence[Measure]) -> dict[str, dict[int, float]]:
    """Return by name and seed the mean rank among all that have a complete seed, of seeds that all of these have."""
    whole = {name: found for name, own in values.items() if (found := complete(own, counted))}
    ranks: dict[str, dict[int, float]] = {name: {} for name in whole}
    for seed in next(iter(whole.values()), {}):
        if all(seed in own for own in whole.values()):
            metric = MeanRank(whole, _directions(counted))
            metric.update(
                {name: _nested({measure: own[seed][measure] for measure in counted}) for name, own in whole.items()}
            )
            for name, rank in zip(whole, metric.compute().reshape(-1).tolist(), strict=True):
                ranks[name][seed] = rank
    return ranks


def _directions(counted: Sequence[Measure]) -> dict[str, dict[str, bool]]:
    return _nested({measure: measure.higher_is_better for measure in counted})


def _nested(values: Mapping[Measure, Any]) -> dict[str, dict[str, Any]]:
    """Return values by task and metric."""
    nested: dict[str, dict[str, Any]] = {}
    for measure, value in values.items():
        nested.setdefault(measure.task, {})[measure.metric] = value
    return nested
