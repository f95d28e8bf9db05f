"""How T task losses become one scalar to minimise."""

from lightning_uncertainty.weightings._base import Weighted, Weighting
from lightning_uncertainty.weightings.analytic import AnalyticUncertaintyWeighting
from lightning_uncertainty.weightings.fixed import FixedWeighting
from lightning_uncertainty.weightings.uncertainty import UncertaintyWeighting

__all__ = ["AnalyticUncertaintyWeighting", "FixedWeighting", "UncertaintyWeighting", "Weighted", "Weighting"]
