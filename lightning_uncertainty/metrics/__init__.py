"""torchmetrics classes: mean losses over an epoch, metrics of what was observed, and how weightings compare."""

from lightning_uncertainty.metrics.losses import BalancedLoss, TaskLoss
from lightning_uncertainty.metrics.multi_task import MeanRank, MultiTaskGain
from lightning_uncertainty.metrics.observed import ObservedMetric

__all__ = ["BalancedLoss", "MeanRank", "MultiTaskGain", "ObservedMetric", "TaskLoss"]
