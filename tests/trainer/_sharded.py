"""Modules that FSDP shards."""

from __future__ import annotations

import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from torchmetrics import MeanAbsoluteError

from lightning_uncertainty import Task
from lightning_uncertainty.tasks import Rescale
from tests._ranks import STEPS, Dealt, Rows, batch_of, shares

KINDS = {"depth": ("gaussian", 1), "width": ("gaussian", 1), "kind": ("categorical", 3)}
SKIPPED = (0, 3, 7, 8)


class Sharded(Dealt):
    """Dealt, with every part that has parameters sharded; what Dealt counts under DDP is another number here."""

    def configure_model(self):
        if self.device_mesh is not None:
            for part in self.parts():
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def parts(self) -> list[nn.Module]:
        return [self.trunk, *self.task_heads.values(), self.task_weighting]

    def own(self, parts: list[Rows]) -> list[Rows]:
        dtype = next(self.trunk.parameters()).dtype
        return [{**part, "x": part["x"].to(dtype)} for part in super().own(parts)]

    def val_dataloader(self):
        return DataLoader(self.train_dataloader().dataset[:3], batch_size=None)

    def on_validation_end(self):
        assert self.trainer.world_size == 1 or isinstance(self.state_dict()["task_weighting.offset"], DTensor)

    def on_train_batch_start(self, batch, batch_idx):
        pass

    def on_train_batch_end(self, outputs, batch, batch_idx):
        pass

    def on_train_end(self):
        pass


class Unsharded(Sharded):
    """The log-variances are forgotten."""

    def parts(self) -> list[nn.Module]:
        return super().parts()[:-1]


class HalfSharded(Sharded):
    """The trunk is forgotten."""

    def parts(self) -> list[nn.Module]:
        return super().parts()[1:]


class ClippedApart(Sharded):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_separately(optimizer, gradient_clip_val, gradient_clip_algorithm)


class Spoilt(Sharded):
    """The last rows of some batches, all of rank 1, have a loss of NaN."""

    def training_step(self, parts, batch_idx):
        if batch_idx in SKIPPED:
            parts[-1]["x"] = parts[-1]["x"] * torch.nan
        return super().training_step(parts, batch_idx)


class Named(Sharded):
    """Some of the three tasks, in any order."""

    def __init__(self, *names: str) -> None:
        LightningModule.__init__(self)
        self.optimizer_name = "Adam"
        self.build(names or tuple(KINDS))

    def build(self, names: tuple[str, ...]) -> None:
        self.trunk = nn.Linear(4, 8)
        self.register_tasks({name: Task(KINDS[name][0], nn.Linear(8, KINDS[name][1])) for name in names})

    @property
    def batches(self) -> list[list[Rows]]:
        return [shares(batch_of(step), step) for step in range(STEPS)]


class Level(nn.Linear):
    """A layer whose first values do not depend on how random numbers are drawn."""

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 0.1)
        nn.init.constant_(self.bias, -0.2)


class OnMeta(Named):
    """Made on the meta device, as the whole, or, late, in `configure_model`."""

    def __init__(self, late: bool = False) -> None:
        LightningModule.__init__(self)
        self.optimizer_name = "SGD"
        if not late:
            self.build()

    def configure_model(self):
        if not self.task_likelihoods():
            with torch.device("meta"):
                self.build()
        super().configure_model()

    def build(self) -> None:
        with torch.device("cpu"):
            metric = MeanAbsoluteError()
        self.trunk = nn.Sequential(Level(4, 8))
        head = nn.Sequential(Level(8, 1), Rescale(0.5, 2.0))
        self.register_tasks({"depth": Task("gaussian", head, metrics=metric), "kind": Task("categorical", Level(8, 3))})


class InOne(Dealt):
    """Its step is its forward, as FSDP1 wants it, and it needs no Trainer."""

    def forward(self, parts: list[Rows]) -> torch.Tensor:
        return self.training_step([{**part, "x": part["x"].double()} for part in parts], 0)
