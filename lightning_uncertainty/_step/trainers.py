"""What is asked of a Trainer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import Tensor, nn

from lightning_uncertainty._step.skipping import Skip
from lightning_uncertainty.tasks import Stage
from lightning_uncertainty.weightings import Weighting

__all__ = [
    "FitState",
    "all_dataloaders",
    "batches_of",
    "epochs_of",
    "is_training",
    "logging_module",
    "path_in",
    "running_trainer",
    "tell_epoch",
    "trainer_of",
]


def trainer_of(module: Any) -> Any | None:
    """The module's Trainer; None where it has none, and under Fabric.

    A part of the module that a Trainer runs has it from there: Lightning tells LightningModules that are children of
    one another, our callbacks all others. Lightning's property `trainer` raises where there is none, which a compiler
    that guards what it reads cannot take.
    """
    trainer = getattr(module, "_trainer", None)
    if trainer is not None:
        return trainer
    fit = getattr(module, "_task_fit", None)
    return None if fit is None or fit.trainer is None else fit.trainer()


def logging_module(module: Any) -> Any | None:
    """The module that logs for this one: that which its Trainer runs; None where nothing logs, as under Fabric."""
    trainer = trainer_of(module)
    if trainer is not None:
        return trainer.lightning_module
    return module if hasattr(module, "log") and getattr(module, "_fabric", None) is None else None


def path_in(root: nn.Module, module: nn.Module) -> str:
    """The path of a module in another, with a dot at its end; empty for the other itself."""
    return next(f"{path}." if path else "" for path, part in root.named_modules() if part is module)


def running_trainer(module: Any) -> Any | None:
    """The module's Trainer while it fits, validates, tests or predicts; None else."""
    trainer = trainer_of(module)
    state = getattr(trainer, "state", None)
    return trainer if state is not None and state.status == "running" else None


def is_training(module: Any, stage: Stage | None) -> bool:
    """Whether a call belongs to a step of training: as its stage says, else a running Trainer, else the module's mode.

    A Trainer leaves modes as it finds them, so a module in evaluation mode may well be in training, by mistake or to
    hold the statistics of normalisation still. Elsewhere in a fit than in `training_step`, as in a callback that looks
    at predictions, evaluation mode is evaluation.
    """
    if stage is not None:
        return stage == "train"
    trainer = running_trainer(module)
    if trainer is None:
        return bool(module.training)
    return bool(trainer.training and (module.training or _hook_of(trainer) == "training_step"))


def _hook_of(trainer: Any) -> str | None:
    return getattr(trainer.lightning_module, "_current_fx_name", None)


def batches_of(trainer: Any, steps: int) -> float:
    """Return how many training batches a fit has at most; infinite where nothing says.

    Args:
        trainer: that fits.
        steps: after how many it ends; below 0 by its epochs alone.
    """
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    most: float = math.inf if epochs is None or epochs < 0 else epochs * batches
    if steps < 0:
        return most
    size = trainer.accumulate_grad_batches
    if math.isinf(batches):
        return float(min(most, steps * size))
    whole, rest = divmod(steps, math.ceil(batches / size))  # the last of an epoch may be smaller
    return float(min(most, whole * batches + rest * size))


def epochs_of(trainer: Any) -> float:
    """Return in how many epochs a fit trains at most, one that it leaves early included; infinite where nothing says.

    Several optimizers of a manual optimization, of which each counts its steps, make them fewer.
    """
    batches = trainer.num_training_batches
    if not 0 < batches < math.inf:
        return math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs)
    most = batches_of(trainer, trainer.max_steps) / batches
    return most if math.isinf(most) else float(math.ceil(most))


class FitState:
    """What a module knows of the fit that it is in; copies and pickles know of none.

    Attributes:
        stage: of the step that is on, where it was told.
        trainer: the Trainer that runs the module this one is a part of, where a callback told.
        told: the parts that are told whether a step is one of training; None before they were looked for.
        warned: whether this fit was warned of steps that are skipped.
        begins: whether nothing was weighed in it yet.
        shares: weights of its first batch, and which tasks were present, until somebody looks at them.
        skip: the latest batch that was skipped; None once another is weighed.
        held: whether a callback takes the gradients of the log-variances away before a step.
        watched: optimizers of it that are watched for gradients of the log-variances.
        shown: whether a `task_step` was, which calls `on_task_outputs`.
        given: the weighting that `register_tasks` was given, of which the module has a copy, as long as it lives.
    """

    def __init__(self) -> None:
        self.stage: Stage | None = None
        self.trainer: ref[Any] | None = None
        self.told: tuple[nn.Module, ...] | None = None
        self.warned = False
        self.begins = True
        self.shares: tuple[Tensor, Tensor] | None = None
        self.skip: Skip | None = None
        self.held = False
        self.watched: WeakSet[Any] = WeakSet()
        self.shown = False
        self.given: ref[Weighting] | None = None
        self._checked: tuple[ref[Any], ...] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return FitState, ()

    def is_checked(self, module: Any) -> bool:
        """Whether the module's present fit, a Trainer and its optimizers, was looked at; without one, whether any."""
        return self._checked == self._fit_of(module)

    def begin(self, module: Any) -> None:
        """Take the module's present fit for looked at, look for its parts, and warn, anew."""
        fit = self._fit_of(module)
        if fit != self._checked:
            self._checked, self.watched = fit, WeakSet()
        self.told, self.warned, self.begins, self.held = None, False, True, False

    def end_skip(self) -> None:
        """Let gradients arrive again, where a skipped batch had no backward."""
        if self.skip is not None:
            self.skip.end()
            self.skip = None

    @staticmethod
    def _fit_of(module: Any) -> tuple[ref[Any], ...]:
        trainer = running_trainer(module)
        return () if trainer is None else (ref(trainer), *map(ref, trainer.optimizers))


@torch.compiler.disable
def tell_epoch(module: Any, weighting: Weighting) -> None:
    """Tell a weighting the module's epoch; 0 where it has no Trainer.

    A compiled step breaks here: compiled with it, the number would be a constant, and every epoch another program.
    """
    trainer = trainer_of(module)
    weighting.start_epoch(0 if trainer is None else trainer.current_epoch)


@contextmanager
def all_dataloaders(trainer: Any | None) -> Iterator[None]:
    """Have Lightning compute what is logged within when all dataloaders are through, under one key for all."""
    results = None if trainer is None else trainer._results
    if results is None:
        yield
        return
    index, results.dataloader_idx = results.dataloader_idx, None
    try:
        yield
    finally:
        results.dataloader_idx = index
