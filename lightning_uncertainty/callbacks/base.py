"""What all callbacks have in common: the Callback class of whichever Lightning packages are installed, and a check."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any
from weakref import ref

import torch
from pytorch_lightning import Callback
from torch import nn
from torchmetrics import MeanSquaredError

from lightning_uncertainty._step import log_prefix
from lightning_uncertainty.mixin import MultiTaskMixin

__all__ = [
    "AnyCallback",
    "TaskCallback",
    "find_labels",
    "is_last_step",
    "offer",
    "require_tasks",
    "validated",
    "warn_of_no_rows",
]

if find_spec("lightning") is not None:
    from lightning.pytorch import Callback as OtherCallback

    class AnyCallback(Callback, OtherCallback):  # type: ignore[misc, valid-type]
        """A callback for the Trainers and the CLIs of both `pytorch_lightning` and `lightning.pytorch`."""

else:

    class AnyCallback(Callback):  # type: ignore[no-redef]
        """A callback for the Trainer and the CLI of `pytorch_lightning`."""


class TaskCallback(AnyCallback):
    """A callback that works on a `MultiTaskMixin`: what the Trainer runs, or a part of it.

    Args:
        module: the path of the part; None where there is one.
    """

    def __init__(self, module: str | None = None) -> None:
        super().__init__()
        self.module = module
        self._path = module or ""
        self._told: set[tuple[int, str]] = set()  # what loggers have refused

    @property
    def state_key(self) -> str:
        """What its state is kept under: callbacks for several parts have one each."""
        key: str = super().state_key if self.module is None else self._generate_state_key(module=self.module)
        return key

    def refuse_second(self, trainer: Any, kind: type[TaskCallback], why: str) -> None:
        """Look for another callback of a kind for the same module.

        Raises:
            ValueError: there is one.
        """
        alike = [other for other in trainer.callbacks if isinstance(other, kind) and other.module == self.module]
        if len(alike) > 1:
            raise ValueError(f"a Trainer should have one {kind.__name__}{why}")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Tell a part that is no child LightningModule of its Trainer, so that its evaluation is logged."""
        paths = [self.module] if self.module else paths_of_tasks(pl_module)
        if len(paths) == 1 and isinstance(net := _part(pl_module, paths[0]), MultiTaskMixin):
            self._path = paths[0]
            _tell(net, trainer)

    def find_tasks(self, trainer: Any, pl_module: Any) -> MultiTaskMixin:
        """Return the module to work on from here on, having looked at it.

        Raises:
            TypeError: there is none, or there are several of which none is named.
            RuntimeError: it has no tasks.
        """
        name, kind, paths = type(self).__name__, type(pl_module).__name__, paths_of_tasks(pl_module)
        found = ", ".join(path or "the module itself" for path in paths)
        if self.module is not None and not isinstance(_part(pl_module, self.module), MultiTaskMixin):
            raise TypeError(
                f"{name}(module=...) should be the path of a MultiTaskMixin in {kind}: found {self.module!r}, "
                f"where those are: {found or 'none'}"
            )
        if not paths:
            require_tasks(name, pl_module)
        if self.module is None and len(paths) > 1:
            raise TypeError(
                f"{name} should be for one MultiTaskMixin: found several in {kind}: {found}; name one, as in "
                f"{name}(module={paths[0]!r})"
            )
        self._path = paths[0] if self.module is None else self.module
        net: MultiTaskMixin = self.tasks_of(pl_module)
        require_tasks(name, net)
        _tell(net, trainer)
        return net

    def tasks_of(self, pl_module: Any) -> Any:
        """Return the module that was found."""
        return pl_module.get_submodule(self._path)


def require_tasks(who: str, module: nn.Module) -> None:
    """Look whether there is a module to work on.

    Raises:
        TypeError: the module is no `MultiTaskMixin`.
        RuntimeError: it has no tasks.
    """
    if not isinstance(module, MultiTaskMixin):
        kind = type(module).__name__
        raise TypeError(
            f"{who} needs a MultiTaskMixin: found {kind}; write `class {kind}(MultiTaskMixin, LightningModule)` "
            "and call register_tasks, or, where its code is not yours, adopt it by `adopt` or the callback AdoptLosses"
        )
    if not module.task_likelihoods():
        module.check_setup()  # says that tasks are missing


def paths_of_tasks(module: nn.Module) -> list[str]:
    """Return the paths of the MultiTaskMixins in a module, but for parts of others: its own is empty."""
    paths: list[str] = []
    for path, part in module.named_modules():
        if isinstance(part, MultiTaskMixin) and not any(not outer or path.startswith(f"{outer}.") for outer in paths):
            paths.append(path)
    return paths


def _tell(net: MultiTaskMixin, trainer: Any) -> None:
    """Have a part of what a Trainer runs know of it, where Lightning tells children that are LightningModules alone."""
    if net.task_likelihoods():
        net._task_fit.trainer = ref(trainer)


def _part(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def is_last_step(trainer: Any, batch_idx: int) -> bool:
    """Whether a batch is of the last step of a fit, as far as its limits tell."""
    epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
    last_batch = batch_idx + 1 >= trainer.num_training_batches and trainer.current_epoch + 1 == epochs
    return bool(last_batch or trainer.global_step + 1 == trainer.max_steps)


def offer(trainer: Any, row: Mapping[str, float]) -> None:
    """Put numbers where ModelCheckpoint and EarlyStopping find them."""
    device = trainer.strategy.root_device
    trainer.callback_metrics.update({key: torch.tensor(value, device=device) for key, value in row.items()})


def warn_of_no_rows(trainer: Any) -> None:
    """Warn where nothing will be logged, though the Trainer is not one that logs nothing on purpose."""
    if trainer.log_every_n_steps == 0 and not trainer.barebones:
        warnings.warn(
            "UncertaintyMonitor logs where the Trainer does: found log_every_n_steps=0, as some libraries set it for "
            "whole batches, so that loggers and history get no row; give the Trainer log_every_n_steps=1",
            stacklevel=3,
        )


def validated(trainer: Any, pl_module: Any, net: MultiTaskMixin) -> dict[str, float]:
    """Return what a validation found of a module's tasks, by their own keys; one copy to the host."""
    computed = trainer._logger_connector.metrics["callback"]  # callback_metrics has those of earlier epochs too
    prefix = log_prefix(pl_module, net)
    keys = [key for key in net.task_metrics if key.startswith("val/") and f"{prefix}{key}" in computed]
    if not keys:
        return {}
    device = trainer.strategy.root_device
    values = torch.cat([computed[f"{prefix}{key}"].to(device).reshape(1) for key in keys])
    return dict(zip(keys, values.tolist(), strict=True))


def find_labels(module: Any) -> dict[str, str]:
    """Return by log key the names of metrics that are not what their class is called."""
    own = {key: getattr(metric, "metric", metric) for key, metric in module.task_metrics.items()}
    roots = {key for key, one in own.items() if isinstance(one, MeanSquaredError) and not one.squared}
    return {key: "RMSE" for key in sorted(roots) if key.endswith("/MeanSquaredError")}
