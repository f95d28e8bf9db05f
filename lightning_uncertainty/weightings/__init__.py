"""How T task losses become one scalar to minimise."""

from functools import partial
from typing import TYPE_CHECKING

from lightning_uncertainty._moved import moved_name
from lightning_uncertainty.weightings._base import Weighting
from lightning_uncertainty.weightings._weighted import Weighted
from lightning_uncertainty.weightings.analytic import AnalyticUncertaintyWeighting
from lightning_uncertainty.weightings.bounded import BoundedUncertaintyWeighting
from lightning_uncertainty.weightings.constrained import ConstrainedUncertaintyWeighting
from lightning_uncertainty.weightings.dynamic_average import DynamicWeightAverage
from lightning_uncertainty.weightings.fixed import FixedWeighting
from lightning_uncertainty.weightings.geometric import GeometricLossWeighting
from lightning_uncertainty.weightings.impartial import ImpartialLossWeighting
from lightning_uncertainty.weightings.random_loss import RandomLossWeighting
from lightning_uncertainty.weightings.scalarizer import ScalarizerWeighting
from lightning_uncertainty.weightings.smooth_tchebycheff import SmoothTchebycheff
from lightning_uncertainty.weightings.soft_optimal import SoftOptimalUncertaintyWeighting
from lightning_uncertainty.weightings.task_prioritization import DynamicTaskPrioritization
from lightning_uncertainty.weightings.uncertainty import UncertaintyWeighting

__all__ = [
    "AnalyticUncertaintyWeighting",
    "BoundedUncertaintyWeighting",
    "ConstrainedUncertaintyWeighting",
    "DynamicTaskPrioritization",
    "DynamicWeightAverage",
    "FixedWeighting",
    "GeometricLossWeighting",
    "ImpartialLossWeighting",
    "RandomLossWeighting",
    "ScalarizerWeighting",
    "SmoothTchebycheff",
    "SoftOptimalUncertaintyWeighting",
    "UncertaintyWeighting",
    "Weighted",
    "Weighting",
]

if not TYPE_CHECKING:
    __getattr__ = partial(moved_name, __name__)
