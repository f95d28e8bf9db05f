"""How weightings stand by their measures: gains over a baseline, and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_uncertainty.metrics import MeanRank, MultiTaskGain
from lightning_uncertainty.trials._mean import Mean
from lightning_uncertainty.trials._measures import Measure

__all__ = ["gains_over", "mean_ranks"]

Values = Mapping[Measure, Mean]


def gains_over(baseline: Values, values: Mapping[str, Values], counted: Sequence[Measure]) -> dict[str, Mean]:
    """Return the gain of every weighting, over seeds, from its values by measure."""
    metric = MultiTaskGain(_nested({measure: baseline[measure].mean for measure in counted}), _directions(counted))
    gains = {}
    for name, found in values.items():
        by_seed = zip(*(found[measure].values for measure in counted), strict=True)
        gains[name] = Mean.of(_value(metric, dict(zip(counted, seed, strict=True))) for seed in by_seed)
    return gains


def mean_ranks(values: Mapping[str, Values], counted: Sequence[Measure]) -> dict[str, float]:
    """Return the mean rank of every weighting among all."""
    metric = MeanRank(values, _directions(counted))
    metric.update(
        {name: _nested({measure: found[measure].mean for measure in counted}) for name, found in values.items()}
    )
    return dict(zip(values, metric.compute().reshape(-1).tolist(), strict=True))


def _directions(counted: Sequence[Measure]) -> dict[str, dict[str, bool]]:
    return _nested({measure: measure.higher_is_better for measure in counted})


def _value(metric: MultiTaskGain, values: dict[Measure, float]) -> float:
    metric.reset()
    metric.update(_nested(values))
    return metric.compute().item()


def _nested(values: dict[Measure, Any]) -> dict[str, dict[str, Any]]:
    """Return values by task and metric."""
    nested: dict[str, dict[str, Any]] = {}
    for measure, value in values.items():
        nested.setdefault(measure.task, {})[measure.metric] = value
    return nested
