"""What is trained, killed and resumed: a module, a loader that keeps its position, and a logger that keeps its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.loggers.logger import Logger
from torch import nn

from lightning_uncertainty import MultiTaskMixin, Task
from tests.trainer._weightings import WEIGHTINGS

BATCHES, EPOCHS = 8, 3
LATE = 14  # the first batch with labels of `late`
VALIDATED = 1002  # the batch of validation, which has all labels


def batch_of(step: int) -> dict[str, torch.Tensor]:
    """Eight rows; `kind` has no labels in every third batch, `late` none in the first ones."""
    rng = torch.Generator().manual_seed(step)
    x = torch.randn(8, 4, generator=rng)
    depth, late = 3 * x[:, 0] + torch.randn(8, generator=rng), x[:, 1:2].exp()
    kind = x[:, :3].argmax(1)
    depth[::3] = torch.nan
    if step % 3 == 1:
        kind[:] = -100
    if step < LATE:
        late[:] = torch.nan
    return {"x": x, "depth": depth, "kind": kind, "late": late}


class Loader:
    """Keeps its position: Lightning saves what has `state_dict`, and tells the epoch what has `sampler.set_epoch`."""

    def __init__(self) -> None:
        self.epoch, self.batch = 0, 0  # the next one
        self.sampler = self

    def __len__(self) -> int:  # of a whole epoch, wherever we are; without it Lightning fetches a batch ahead
        return BATCHES

    def __iter__(self):
        while self.batch < BATCHES:
            self.batch += 1
            yield batch_of(self.epoch * BATCHES + self.batch - 1)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.batch = epoch, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]


class Net(MultiTaskMixin, LightningModule):
    """Three tasks; at given places of a fit it calls `kill`."""

    def __init__(self, weighting: str) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        self.kill: Callable[[str], None] = lambda place: None
        self.resumed_at = 0
        self.seen: list[dict[str, float]] = []  # losses of every batch since
        tasks = {
            "depth": Task("gaussian", head=nn.Linear(8, 1)),
            "kind": Task("categorical", head=nn.Linear(8, 3)),
            "late": Task("laplace", head=nn.Linear(8, 1)),
        }
        self.register_tasks(tasks, weighting=WEIGHTINGS[weighting]())

    def task_losses(self, outputs, batch):
        losses = super().task_losses(outputs, batch)
        if self.training:
            self.seen.append({name: (total / count).item() for name, (total, count) in losses.items() if count})
        return losses

    def training_step(self, batch, batch_idx):
        total = self.task_step(self.trunk(batch["x"]).tanh(), batch, "train")
        self.log("total", total, batch_size=1)
        return total

    def validation_step(self, batch, batch_idx):
        self.task_step(self.trunk(batch["x"]).tanh(), batch, "val")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameter_groups(lr=1e-2, weight_decay=0.1))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self):
        self.resumed_at = self.global_step

    def on_before_backward(self, loss):
        self.kill("before backward")

    def on_before_optimizer_step(self, optimizer):
        self.kill("before the step")

    def on_save_checkpoint(self, checkpoint):
        self.kill("in the checkpoint")

    def on_train_batch_end(self, outputs, batch, batch_idx):  # callbacks have had their turn
        self.kill("after the checkpoint")


class BetweenStepAndCheckpoint(Callback):
    """Comes before ModelCheckpoint, which Lightning moves to the end."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.kill("before the checkpoint")


class Rows(Logger):
    """Keeps what is logged."""

    name, version = "rows", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params):
        pass


def bits(found: Any) -> Any:
    """What compares as equal to the last bit: NaN to NaN, 0 not to -0."""
    if isinstance(found, torch.Tensor):
        return str(found.dtype), tuple(found.shape), found.numpy().tobytes()
    if isinstance(found, dict):
        return {key: bits(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [bits(value) for value in found]
    return found.hex() if isinstance(found, float) else found
