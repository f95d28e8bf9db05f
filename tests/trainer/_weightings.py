"""One weighting of every class, for modules that have a task `depth`."""

from __future__ import annotations

from collections.abc import Callable

from lightning_uncertainty.weightings import (
    AnalyticUncertaintyWeighting,
    BoundedUncertaintyWeighting,
    ConstrainedUncertaintyWeighting,
    FixedWeighting,
    SoftOptimalUncertaintyWeighting,
    UncertaintyWeighting,
    Weighting,
)

WEIGHTINGS: dict[str, Callable[[], Weighting]] = {
    "UncertaintyWeighting": UncertaintyWeighting,
    "BoundedUncertaintyWeighting": lambda: BoundedUncertaintyWeighting(base_weights={"depth": 0.5}),
    "ConstrainedUncertaintyWeighting": lambda: ConstrainedUncertaintyWeighting(mean_log_variance=1.5),
    "SoftOptimalUncertaintyWeighting": lambda: SoftOptimalUncertaintyWeighting(temperature=20.0),
    "AnalyticUncertaintyWeighting": lambda: AnalyticUncertaintyWeighting(decay=0.9),
    "FixedWeighting": lambda: FixedWeighting({"depth": 0.1}),
}
