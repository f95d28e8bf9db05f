"""Callbacks: they read for humans; training is right without them."""

from lightning_uncertainty.callbacks.uncertainty_monitor import UncertaintyMonitor

__all__ = ["UncertaintyMonitor"]
