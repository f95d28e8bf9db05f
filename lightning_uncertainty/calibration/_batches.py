"""Held-out batches as Lightning hands them to a step of validation, and what the module takes of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning import Trainer
from pytorch_lightning.core.hooks import DataHooks
from pytorch_lightning.plugins import DoublePrecision, HalfPrecision, Precision
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_uncertainty._step import trainer_of
from lightning_uncertainty.callbacks import base
from lightning_uncertainty.mixin import MultiTaskMixin
from lightning_uncertainty.module import MultiTaskSteps
from lightning_uncertainty.predictions import DeepEnsemble
from lightning_uncertainty.tasks.task import pick

__all__ = ["Feed", "Inputs", "feeding", "require_tasks"]

Inputs = str | Callable[[Any], Any] | None
_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
_PACKAGES = ("pytorch_lightning", "lightning.pytorch")
_PRECISIONS: dict[torch.dtype, Callable[[], Precision]] = {
    torch.float64: DoublePrecision,
    torch.bfloat16: lambda: HalfPrecision("bf16-true"),
    torch.float16: lambda: HalfPrecision("16-true"),
}


class Feed:
    """Converts, changes and moves batches as a Trainer does, and knows in which precision a step runs.

    Args:
        module: whose tasks are looked at.
        owner: has the hooks: the module, or what its Trainer runs.
        trainer: that of the owner; None where it has none.
        datamodule: whose hooks go before the owner's; None where there is none.
    """

    def __init__(self, module: MultiTaskMixin, owner: Any, trainer: Any, datamodule: Any) -> None:
        self._module = module
        self._device = module.task_weighting.task_ids.device
        hooks = [_hook(name, datamodule, owner) or getattr(DataHooks(), name) for name in _HOOKS]
        self._before, self._move, self._after = hooks
        self._precision = _precision_of(module, trainer)

    def batches(self, dataloader: Iterable[Any], inputs: Inputs) -> Iterator[tuple[Any, Any]]:
        """Yield the inputs of every batch, and the batch; of one dataloader, or of several one after the other.

        Raises:
            TypeError: it is one batch, or what has dataloaders, or nothing of the kind.
        """
        if isinstance(dataloader, Mapping | Tensor | str) or not hasattr(dataloader, "__iter__"):
            kind = type(dataloader).__name__
            has = "; give what its val_dataloader() returns" if hasattr(dataloader, "val_dataloader") else ""
            raise TypeError(f"held-out data should be a dataloader, or a list of batches: found a {kind}{has}")
        several = isinstance(dataloader, list | tuple) and all(isinstance(one, DataLoader) for one in dataloader)
        for index, loader in enumerate(dataloader if several else [dataloader]):
            for batch in loader:
                given = self._before(self._precision.convert_input(batch), index)
                moved = self._after(self._move(given, self._device, index), index)
                yield self._inputs_of(moved, inputs), moved

    def step(self) -> AbstractContextManager[None]:
        """Return the context in which a step runs: autocast, or the default type of new tensors."""
        context: AbstractContextManager[None] = self._precision.val_step_context()
        return context

    def _inputs_of(self, batch: Any, inputs: Inputs) -> Any:
        if inputs is not None:
            return pick(batch, inputs, "inputs", "name another key with inputs=..., or give a function there")
        return self._module.inputs_of(batch) if isinstance(self._module, MultiTaskSteps) else batch


def require_tasks(who: str, module: Any, of_ensemble: str) -> None:
    """Look whether there is one module with tasks.

    Args:
        who: is called.
        module: that it was given.
        of_ensemble: what to call for an ensemble.

    Raises:
        TypeError: the module is no `MultiTaskMixin`.
        RuntimeError: it has no tasks.
    """
    if isinstance(module, DeepEnsemble):
        raise TypeError(
            f"{who} should be given one model, as σ and correction are those of a model: found a DeepEnsemble; write "
            f"{of_ensemble}"
        )
    base.require_tasks(who, module)


@contextmanager
def feeding(module: MultiTaskMixin, datamodule: Any) -> Iterator[Feed]:
    """Have batches handed to a module within as its Trainer would in validation, whatever that is doing.

    Args:
        module: whose tasks are looked at.
        datamodule: whose hooks of the transfer are called; that of the module's Trainer where None.
    """
    trainer = trainer_of(module)
    runs = getattr(trainer, "lightning_module", None)
    owner: Any = runs if runs is not None and any(part is module for part in runs.modules()) else module
    datamodule = getattr(trainer, "datamodule", None) if datamodule is None else datamodule
    feed = Feed(module, owner, trainer, datamodule)
    if not any(_hook(name, datamodule, owner) for name in _HOOKS):
        yield feed
        return
    with _validating(_stand_in() if trainer is None else trainer, owner, datamodule):
        yield feed


def _hook(name: str, *owners: Any) -> Any:
    """Return a hook of the first owner that has one of its own; None where all have Lightning's, which does nothing."""
    own = (getattr(owner, name) for owner in owners if hasattr(owner, name))
    return next((hook for hook in own if getattr(hook, "__qualname__", name) != f"DataHooks.{name}"), None)


def _precision_of(module: MultiTaskMixin, trainer: Any) -> Any:
    """Return the precision of the Trainer, or, where the module has another type by now or no Trainer, that of it."""
    own = {id(parameter) for parameter in module.task_weighting.parameters()}  # float32 beside any type
    dtypes = {one.dtype for one in module.parameters() if id(one) not in own and one.is_floating_point()}
    plugin = getattr(trainer, "precision_plugin", None)
    given = None if plugin is None else plugin.convert_input(torch.zeros((), dtype=torch.float32)).dtype
    if plugin is not None and (given in dtypes or len(dtypes) != 1):
        return plugin
    return _PRECISIONS.get(dtypes.pop(), Precision)() if len(dtypes) == 1 else Precision()


@contextmanager
def _validating(trainer: Any, *owners: Any) -> Iterator[None]:
    """Have hooks that ask their Trainer be told that it validates."""
    told = [one for one in owners if hasattr(one, _HOOKS[0])]
    before = [vars(one).get("_trainer", vars(one).get("trainer")) for one in told]
    stage = trainer.state.stage
    trainer.validating = True
    try:
        for one in told:
            one.trainer = trainer
        yield
    finally:
        for one, own in zip(told, before, strict=True):
            one.trainer = own
        trainer.state.stage = stage


def _stand_in() -> Trainer:
    """Return a Trainer for hooks that look at one, where the module has none, without its news."""
    loggers = [logging.getLogger(f"{package}.utilities.rank_zero") for package in _PACKAGES]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        return Trainer(accelerator="cpu", devices=1, logger=False, plugins=[LightningEnvironment()])
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
