"""The parts of a training step that know the Trainer and the optimizer, and how losses become vectors."""

from lightning_uncertainty._step.kpis import hearing
from lightning_uncertainty._step.losses import TaskLossValue, check_known, graph_of, stack_losses
from lightning_uncertainty._step.optimizers import (
    BETAS,
    check_optimizers,
    check_shards,
    clip_separately,
    split,
    take_apart,
)
from lightning_uncertainty._step.trainers import all_dataloaders, check_skipping, tell_epoch, trainer_of
from lightning_uncertainty._step.window import StepWindow, unsound_loss

__all__ = [
    "BETAS",
    "StepWindow",
    "TaskLossValue",
    "all_dataloaders",
    "check_known",
    "check_optimizers",
    "check_shards",
    "check_skipping",
    "clip_separately",
    "graph_of",
    "hearing",
    "split",
    "stack_losses",
    "take_apart",
    "tell_epoch",
    "trainer_of",
    "unsound_loss",
]
