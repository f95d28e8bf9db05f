"""Fits of one model under many weightings, and what is kept of each."""

from lightning_uncertainty.trials._fit import QUIET, Data, Make, Maker, NewWeighting, fit, new_weighting
from lightning_uncertainty.trials._folder import Trial, TrialFolder
from lightning_uncertainty.trials._mean import Mean
from lightning_uncertainty.trials._measures import Directions, Measure, MetricNames, directions, find_measures
from lightning_uncertainty.trials._progress import TrialProgress
from lightning_uncertainty.trials._setup import describe, text_of
from lightning_uncertainty.trials._watch import TrialWatch

__all__ = [
    "QUIET",
    "Data",
    "Directions",
    "Make",
    "Maker",
    "Mean",
    "Measure",
    "MetricNames",
    "NewWeighting",
    "Trial",
    "TrialFolder",
    "TrialProgress",
    "TrialWatch",
    "describe",
    "directions",
    "find_measures",
    "fit",
    "new_weighting",
    "text_of",
]
