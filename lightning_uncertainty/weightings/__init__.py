"""How T task losses become one scalar to minimise."""

from lightning_uncertainty.weightings._base import Weighted, Weighting
from lightning_uncertainty.weightings.analytic import AnalyticUncertaintyWeighting
from lightning_uncertainty.weightings.bounded import BoundedUncertaintyWeighting
from lightning_uncertainty.weightings.constrained import ConstrainedUncertaintyWeighting
from lightning_uncertainty.weightings.fixed import FixedWeighting
from lightning_uncertainty.weightings.soft_optimal import SoftOptimalUncertaintyWeighting
from lightning_uncertainty.weightings.uncertainty import UncertaintyWeighting

__all__ = [
    "AnalyticUncertaintyWeighting",
    "BoundedUncertaintyWeighting",
    "ConstrainedUncertaintyWeighting",
    "FixedWeighting",
    "SoftOptimalUncertaintyWeighting",
    "UncertaintyWeighting",
    "Weighted",
    "Weighting",
]
