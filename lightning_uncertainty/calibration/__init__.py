"""Whether a model is as sure as it is right, and how to mend it after training."""

from lightning_uncertainty.calibration.assessment import Calibration, assess
from lightning_uncertainty.calibration.recalibration import Recalibration, TaskRecalibration, recalibrate

__all__ = ["Calibration", "Recalibration", "TaskRecalibration", "assess", "recalibrate"]
