"""What a task is, and what it may own: a head, labels, metrics, a correction."""

from lightning_uncertainty.tasks.corrections import TaskCorrections
from lightning_uncertainty.tasks.heads import HeteroscedasticHead, Rescale
from lightning_uncertainty.tasks.stages import Stage
from lightning_uncertainty.tasks.task import Task, deep_supervision

__all__ = ["HeteroscedasticHead", "Rescale", "Stage", "Task", "TaskCorrections", "deep_supervision"]
