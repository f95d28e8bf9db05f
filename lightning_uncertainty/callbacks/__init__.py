"""Callbacks: training is right without them."""

from lightning_uncertainty.callbacks.gradient_conflict import GradientConflictMonitor
from lightning_uncertainty.callbacks.prediction_images import PredictionImages
from lightning_uncertainty.callbacks.prediction_writer import PredictionWriter
from lightning_uncertainty.callbacks.uncertainty_monitor import UncertaintyMonitor
from lightning_uncertainty.callbacks.warm_up import UncertaintyWarmUp

__all__ = ["GradientConflictMonitor", "PredictionImages", "PredictionWriter", "UncertaintyMonitor", "UncertaintyWarmUp"]
