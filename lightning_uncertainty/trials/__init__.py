"""Fits of one model under many weightings: compared, or searched for the best; and what is kept of each."""

from lightning_uncertainty.trials._mean import Mean
from lightning_uncertainty.trials._measures import Measure
from lightning_uncertainty.trials._trial import Trial
from lightning_uncertainty.trials.comparing import compare
from lightning_uncertainty.trials.comparison import Comparison, Result
from lightning_uncertainty.trials.search import search_weights
from lightning_uncertainty.trials.weight_search import Point, WeightSearch, simplex_grid

__all__ = [
    "Comparison",
    "Mean",
    "Measure",
    "Point",
    "Result",
    "Trial",
    "WeightSearch",
    "compare",
    "search_weights",
    "simplex_grid",
]
