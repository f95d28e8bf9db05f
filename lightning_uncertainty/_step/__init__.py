"""The parts of a training step that know the Trainer and the optimizer, and how losses become vectors."""

from lightning_uncertainty._step.arriving import warn_where_none_arrive
from lightning_uncertainty._step.checks import warn_of_length, warn_of_shares
from lightning_uncertainty._step.kpis import hearing
from lightning_uncertainty._step.logs import log_evaluation, log_metrics, log_prefix
from lightning_uncertainty._step.losses import TaskLossValue, check_graphs, graph_of, stack_losses
from lightning_uncertainty._step.names import check_class_names, check_names, is_ours
from lightning_uncertainty._step.optimizers import (
    BETAS,
    FACTOR,
    check_optimizers,
    check_resumed,
    check_shards,
    clip_separately,
    grouped,
    split,
    take_apart,
)
from lightning_uncertainty._step.own_group import own_group
from lightning_uncertainty._step.plain import OWN_PARTS, own_prefixes, plain_checkpoint, without
from lightning_uncertainty._step.rates import check_rates, restore_rates
from lightning_uncertainty._step.skipping import Skip
from lightning_uncertainty._step.trainers import (
    FitState,
    all_dataloaders,
    batches_of,
    epochs_of,
    is_training,
    running_trainer,
    tell_epoch,
    trainer_of,
)
from lightning_uncertainty._step.window import StepWindow, all_sound, check_losses, unsound_loss

__all__ = [
    "BETAS",
    "FACTOR",
    "OWN_PARTS",
    "FitState",
    "Skip",
    "StepWindow",
    "TaskLossValue",
    "all_dataloaders",
    "all_sound",
    "batches_of",
    "check_class_names",
    "check_graphs",
    "check_losses",
    "check_names",
    "check_optimizers",
    "check_rates",
    "check_resumed",
    "check_shards",
    "clip_separately",
    "epochs_of",
    "graph_of",
    "grouped",
    "hearing",
    "is_ours",
    "is_training",
    "log_evaluation",
    "log_metrics",
    "log_prefix",
    "own_group",
    "own_prefixes",
    "plain_checkpoint",
    "restore_rates",
    "running_trainer",
    "split",
    "stack_losses",
    "take_apart",
    "tell_epoch",
    "trainer_of",
    "unsound_loss",
    "warn_of_length",
    "warn_of_shares",
    "warn_where_none_arrive",
    "without",
]
