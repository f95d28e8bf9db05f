"""One weighting of every class, for modules that have a task `depth`."""

from __future__ import annotations

from collections.abc import Callable

from lightning_uncertainty.balancing import GradientBalancing, GradNorm
from lightning_uncertainty.balancing._base import BalancingWeighting
from lightning_uncertainty.weightings import (
    AnalyticUncertaintyWeighting,
    BoundedUncertaintyWeighting,
    ConstrainedUncertaintyWeighting,
    DynamicTaskPrioritization,
    DynamicWeightAverage,
    FixedWeighting,
    GeometricLossWeighting,
    ImpartialLossWeighting,
    RandomLossWeighting,
    SmoothTchebycheff,
    SoftOptimalUncertaintyWeighting,
    UncertaintyWeighting,
    Weighting,
)
from lightning_uncertainty.weightings._learnt import LearntWeighting

WEIGHTINGS: dict[str, Callable[[], Weighting]] = {
    "UncertaintyWeighting": UncertaintyWeighting,
    "BoundedUncertaintyWeighting": lambda: BoundedUncertaintyWeighting(base_weights={"depth": 0.5}),
    "ConstrainedUncertaintyWeighting": lambda: ConstrainedUncertaintyWeighting(mean_log_variance=1.5),
    "SoftOptimalUncertaintyWeighting": lambda: SoftOptimalUncertaintyWeighting(temperature=20.0),
    "AnalyticUncertaintyWeighting": lambda: AnalyticUncertaintyWeighting(decay=0.9),
    "FixedWeighting": lambda: FixedWeighting({"depth": 0.1}),
    "RandomLossWeighting": lambda: RandomLossWeighting(seed=5),
    "DynamicWeightAverage": lambda: DynamicWeightAverage(temperature=0.5),
    "DynamicTaskPrioritization": lambda: DynamicTaskPrioritization(2.0, decay=0.8),
    "SmoothTchebycheff": lambda: SmoothTchebycheff(0.5, {"depth": 0.7}, nadir_epoch=0),
    "GeometricLossWeighting": lambda: GeometricLossWeighting({"depth": 0.5}),
    "ImpartialLossWeighting": ImpartialLossWeighting,
    "GradNorm": lambda: GradNorm(lr=0.01),
    "GradientBalancing": lambda: GradientBalancing("mgda", UncertaintyWeighting()),
}
FOLLOWING = ["SoftOptimalUncertaintyWeighting", "GeometricLossWeighting", "SmoothTchebycheff"]  # each batch
LEARNT = [name for name, make in WEIGHTINGS.items() if isinstance(make(), LearntWeighting)]
BALANCING = [name for name, make in WEIGHTINGS.items() if isinstance(make(), BalancingWeighting)]
BY_EPOCH = [name for name, make in WEIGHTINGS.items() if make().needs_epoch]
