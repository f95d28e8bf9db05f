"""torchmetrics classes: mean losses over an epoch, metrics of what was observed, comparisons, and calibration."""

from lightning_uncertainty.metrics.coverage import IntervalCoverage
from lightning_uncertainty.metrics.instance_ap import InstanceAP
from lightning_uncertainty.metrics.losses import BalancedLoss, TaskLoss
from lightning_uncertainty.metrics.multi_task import MeanRank, MultiTaskGain
from lightning_uncertainty.metrics.observed import ObservedMetric
from lightning_uncertainty.metrics.reliability import Reliability, ReliabilityDiagram
from lightning_uncertainty.metrics.scores import CRPS, PredictiveNLL, Sharpness

__all__ = [
    "CRPS",
    "BalancedLoss",
    "InstanceAP",
    "IntervalCoverage",
    "MeanRank",
    "MultiTaskGain",
    "ObservedMetric",
    "PredictiveNLL",
    "Reliability",
    "ReliabilityDiagram",
    "Sharpness",
    "TaskLoss",
]
