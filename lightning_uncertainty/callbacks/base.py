"""What all callbacks have in common: the Callback class of whichever Lightning packages are installed, and a check."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from pytorch_lightning import Callback
from torch import nn

from lightning_uncertainty.mixin import MultiTaskMixin

__all__ = ["AnyCallback", "check_module", "is_last_step", "offer"]

if find_spec("lightning") is not None:
    from lightning.pytorch import Callback as OtherCallback

    class AnyCallback(Callback, OtherCallback):  # type: ignore[misc, valid-type]
        """A callback for the Trainers and the CLIs of both `pytorch_lightning` and `lightning.pytorch`."""

else:

    class AnyCallback(Callback):  # type: ignore[no-redef]
        """A callback for the Trainer and the CLI of `pytorch_lightning`."""


def check_module(callback: str, module: nn.Module) -> None:
    """Look whether a callback has a module to work on.

    Raises:
        TypeError: the module is no `MultiTaskMixin`.
        RuntimeError: it has no tasks.
    """
    if not isinstance(module, MultiTaskMixin):
        kind = type(module).__name__
        raise TypeError(
            f"{callback} needs a MultiTaskMixin: found {kind}; write `class {kind}(MultiTaskMixin, LightningModule)` "
            "and call register_tasks"
        )
    if not module.task_likelihoods():
        module.check_setup()  # says that tasks are missing


def is_last_step(trainer: Any, batch_idx: int) -> bool:
    """Whether a batch is of the last step of a fit, as far as its limits tell."""
    epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
    last_batch = batch_idx + 1 >= trainer.num_training_batches and trainer.current_epoch + 1 == epochs
    return bool(last_batch or trainer.global_step + 1 == trainer.max_steps)


def offer(trainer: Any, row: Mapping[str, float]) -> None:
    """Put numbers where ModelCheckpoint and EarlyStopping find them."""
    device = trainer.strategy.root_device
    trainer.callback_metrics.update({key: torch.tensor(value, device=device) for key, value in row.items()})
