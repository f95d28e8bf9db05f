"""A ready LightningModule of a backbone and tasks, for which there is nothing to write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_uncertainty._tensors import rank, world_size
from lightning_uncertainty.architectures import Architecture, BranchingArchitecture, with_heads
from lightning_uncertainty.likelihoods import Prediction
from lightning_uncertainty.mixin import MultiTaskMixin
from lightning_uncertainty.predictions import Sampling
from lightning_uncertainty.tasks import Stage, Task
from lightning_uncertainty.tasks.task import pick, specify
from lightning_uncertainty.weightings import Weighting

__all__ = ["MultiTaskModule", "MultiTaskSteps"]

_MADE_WITH = "multi_task_module"  # key of checkpoints


class MultiTaskSteps(MultiTaskMixin):
    """All of `MultiTaskModule` but the LightningModule, which it stands before, of either Lightning package.

    Subclassed with the LightningModule of `lightning.pytorch`, it is the same module for that package's Trainer.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> class OtherModule(MultiTaskSteps, LightningModule):
        ...     "The two lines."
        >>> module = OtherModule(nn.Linear(4, 8), {"depth": Task("laplace", head=nn.Linear(8, 1))})
    """

    def __init__(
        self,
        backbone: nn.Module,
        tasks: Mapping[str, Task],
        weighting: Weighting | None = None,
        *,
        inputs: str | Callable[[Any], Any] | None = None,
        optimizer: Callable[[Iterable[Any]], Optimizer] = AdamW,
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        samples: int | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        """Register the tasks.

        Args:
            backbone: network from the inputs to the features that every head takes; or an `Architecture`, which makes
                the predictions itself.
            tasks: by name, a likelihood and a head, and what else a `Task` owns. For an `Architecture` a task without
                head for every prediction (see `deep_supervision`); tasks with heads beside these take the last of the
                features that its tasks share, and what their heads return is left as it is.
            weighting: how the losses become one; UncertaintyWeighting if there is none.
            inputs: key of the batch, or function of the batch, that gives what the backbone takes. None is the key of
                the checkpoint that is loaded, without one "inputs".
            optimizer: makes an optimizer of parameter groups, as torch.optim.AdamW does. Learning rate and weight decay
                are those of the network; the log-variances have ten times the rate and no decay.
            lr_scheduler: makes a scheduler of the optimizer, stepped once an epoch. ReduceLROnPlateau follows
                val/balanced_loss, which may be negative: give it threshold_mode="abs".
            samples: passes of `predict_step`: 1 without dropout, more with it, whose spread is epistemic uncertainty.
                None is the number of the checkpoint that is loaded, without one 1.
            sampling: how these are drawn: their seed, to which the number of each batch is added, most rows of a
                forward, and classes that drop by themselves.

        Raises:
            ValueError: a task has no head, or one that an `Architecture` does not need or has no features for, or a
                prediction of that has no task; or a name of a task or metric cannot be used, or the weighting has
                numbers for other tasks, or samples are below 1.
        """
        super().__init__()
        if samples is not None and samples < 1:
            raise ValueError(f"samples should be at least 1: found {samples}; 1 is a prediction without dropout")
        specified = specify(tasks)
        headless = [name for name, task in specified.items() if task.head is None]
        if isinstance(backbone, Architecture):
            made = backbone.predictions
            if set(headless) != made.keys():
                raise ValueError(
                    f"tasks of {type(backbone).__name__} should be its predictions, without heads: found "
                    f"{', '.join(headless) or 'none'} for {', '.join(made)}; name the same, as deep_supervision(tasks, "
                    "net.predictions) does"
                )
            heads = {name: task.head for name, task in specified.items() if task.head is not None}
            backbone = with_heads(backbone, heads) if heads else backbone
            specified = {name: replace(task, head=None) for name, task in specified.items()}
        elif headless:
            raise ValueError(
                f"every task should have a head: found none for {', '.join(headless)}; give Task(..., head=...), or "
                "write the steps yourself with MultiTaskMixin"
            )
        self.backbone = backbone
        self.register_tasks(specified, weighting=weighting)
        self._task_inputs = inputs
        self._task_optimizer = optimizer
        self._task_lr_scheduler = lr_scheduler
        self._task_samples = samples
        self._task_sampling = Sampling() if sampling is None else sampling

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write where the inputs are in a batch, and how many passes a prediction has."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        inputs = self._task_inputs if isinstance(self._task_inputs, str | None) else ""
        checkpoint[_MADE_WITH] = {"inputs": inputs, "samples": self._task_samples}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take from a checkpoint what was not given.

        Raises:
            ValueError: its inputs were a function of the batch, which a checkpoint does not hold, and none is given.
        """
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        made = checkpoint.get(_MADE_WITH, {})
        if self._task_inputs is None and made.get("inputs") == "":
            raise ValueError(
                "inputs should be given beside a checkpoint whose inputs were a function of the batch: found none; "
                "give the same function, as in load_from_checkpoint(path, ..., inputs=function)"
            )
        self._task_inputs = made.get("inputs") if self._task_inputs is None else self._task_inputs
        self._task_samples = made.get("samples") if self._task_samples is None else self._task_samples

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        """Return what every head makes of the inputs, by task."""
        return self.task_outputs(_features(self, inputs))

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the tasks share: all but those of the heads, or what an `Architecture` says."""
        if isinstance(self.backbone, Architecture):
            return self.backbone.shared_parameters()
        return super().shared_parameters()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Return what `weigh` does."""
        return _step(self, batch, "train")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log `val/<task>/loss`, `val/<task>/<metric>` and `val/balanced_loss`, over all dataloaders."""
        _step(self, batch, "val")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log as in validation, under `test`."""
        _step(self, batch, "test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Prediction]:
        """Return what is predicted by task, and how surely (see `predict_tasks`); the batch needs no labels."""
        number = (dataloader_idx << 32) + batch_idx * world_size() + rank()
        options = vars(self._task_sampling.of_batch(number))
        return self.predict_tasks(self.inputs_of(batch), samples=self._task_samples or 1, **options)

    def inputs_of(self, batch: Any) -> Any:
        """Return what the backbone takes of a batch.

        Raises:
            ValueError: the batch has no such key.
        """
        mend = "name another key with inputs=..., or give a function of the batch there"
        return pick(batch, self._task_inputs or "inputs", "inputs", mend)

    def configure_optimizers(self) -> Any:
        """Build the optimizer, and the scheduler if there is one; a subclass may build others from `parameter_groups`.

        The groups are final before a scheduler sees them, so that it moves both learning rates alike.
        """
        groups = self.parameter_groups(lr=1.0)
        factors = [group.pop("lr") for group in groups]  # on the rate that the optimizer comes with
        del groups[0]["weight_decay"]  # the optimizer's own; that of the log-variances stays 0
        optimizer = self._task_optimizer(groups)
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = factor * group["lr"]
        if self._task_lr_scheduler is None:
            return optimizer
        scheduler = self._task_lr_scheduler(optimizer)
        monitor = getattr(scheduler, "monitor", "val/balanced_loss")  # Lightning's ReduceLROnPlateau brings its own
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": monitor}}


def _step(module: MultiTaskSteps, batch: Any, stage: Stage) -> Tensor | None:
    return module.task_step(_features(module, module.inputs_of(batch)), batch, stage)


def _features(module: MultiTaskSteps, inputs: Any) -> Any:
    """Return what the backbone makes: features, or the predictions of an architecture, parted at its features."""
    if isinstance(module.backbone, BranchingArchitecture):
        return module.backbone(inputs, split=module.split_features)
    return module.backbone(inputs)


class MultiTaskModule(MultiTaskSteps, LightningModule):
    """A backbone and tasks, ready for a Trainer.

    Checkpoints hold weights, the state of the weighting, the key of the inputs and the number of samples: read one with
    `MultiTaskModule.load_from_checkpoint(path, backbone=..., tasks=...)`, and an optimizer, a scheduler or a function
    of the inputs if it had one. Those of the command line hold their configuration too and need none. For
    `lightning.pytorch` see `MultiTaskSteps`.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from torch.utils.data import DataLoader
        >>> import torch
        >>> tasks = {
        ...     "depth": Task("laplace", head=nn.Linear(8, 1)),
        ...     "kind": Task("categorical", head=nn.Linear(8, 3), target="label"),
        ... }
        >>> module = MultiTaskModule(nn.Linear(4, 8), tasks, inputs="x")
        >>> rows = [{"x": torch.ones(4), "depth": torch.ones(1), "label": 2}] * 8
        >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        >>> trainer = Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
        >>> trainer.fit(module, DataLoader(rows, batch_size=4))
        >>> {task: list(output.shape) for task, output in module(torch.ones(2, 4)).items()}
        {'depth': [2, 1], 'kind': [2, 3]}
    """
