"""Any Lightning model becomes uncertainty-weighted."""

from lightning_uncertainty._moved import install
from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.callbacks import GradientConflictMonitor, UncertaintyMonitor, UncertaintyWarmUp
from lightning_uncertainty.likelihoods import masked_sum
from lightning_uncertainty.mixin import MultiTaskMixin
from lightning_uncertainty.module import MultiTaskModule, MultiTaskSteps
from lightning_uncertainty.tasks import Task, deep_supervision
from lightning_uncertainty.weightings import AnalyticUncertaintyWeighting, FixedWeighting, UncertaintyWeighting

__all__ = [
    "AnalyticUncertaintyWeighting",
    "FixedWeighting",
    "GradientBalancing",
    "GradientConflictMonitor",
    "MultiTaskMixin",
    "MultiTaskModule",
    "MultiTaskSteps",
    "Task",
    "UncertaintyMonitor",
    "UncertaintyWarmUp",
    "UncertaintyWeighting",
    "deep_supervision",
    "masked_sum",
]

install()
