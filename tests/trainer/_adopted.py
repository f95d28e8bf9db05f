"""Adopted modules over two processes, and on one; what ranks run."""

from __future__ import annotations

import copy
import warnings

import torch
from pytorch_lightning.strategies import DDPStrategy

from lightning_uncertainty import AdoptLosses, MultiTaskMixin, UncertaintyMonitor, UncertaintyWeighting, adopt
from tests._launch import RANKS, TIMEOUT
from tests._nets import trainer
from tests.adoption._hosts import PARTS, TASKS, Host, Loader, rows, seeded

KINDS = ("log", "weight", "call", "function")
CELLS = [*KINDS, "learnt", "counted", "broken"]


class Dealt(Host):
    """Each rank has its share of every batch; one process has all; label counts differ if asked."""

    def __init__(self, unequal=False):
        super().__init__()
        self.trunk[2] = torch.nn.Identity()
        self.cut = 1 if unequal else 2

    def training_step(self, batch, batch_idx):
        if self.trainer.world_size > 1:
            rows = slice(self.cut) if self.global_rank == 0 else slice(self.cut, None)
            batch = {name: value[rows] for name, value in batch.items()}
        return super().training_step(batch, batch_idx)


def labels(batch):
    """Labels by task, on the share that a step was given."""
    return {"depth": len(batch["x"]), "height": len(batch["x"])}


class Counting(Dealt):
    """Has its share before the step, where count= sees it too."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.world_size == 1:
            return batch
        rows = slice(self.cut) if self.global_rank == 0 else slice(self.cut, None)
        return {name: value[rows] for name, value in batch.items()}

    def training_step(self, batch, batch_idx):
        return Host.training_step(self, batch, batch_idx)


class Breaking(Dealt):
    """Adds to its loss on the last rank what is not a number, in one step."""

    def training_step(self, batch, batch_idx):
        total = super().training_step(batch, batch_idx)
        broken = batch_idx == 2 and self.global_rank == self.trainer.world_size - 1
        return total + self.head.weight.square().sum() * (float("nan") if broken else 1.0)


def fit(cell, strategy="auto", devices=1, *, before=False):
    """Fit a module that a callback adopts, or that was adopted before."""
    kind = cell if cell in KINDS else "log"
    weighting = UncertaintyWeighting() if cell == "learnt" else None
    counted = cell == "counted"
    host = seeded(Counting, unequal=True) if counted else seeded(Breaking if cell == "broken" else Dealt)
    options = {"weighting": weighting, "count": labels if counted else None}
    options |= {"rest": "plain", "on_nonfinite": "skip_step"} if cell == "broken" else {}
    monitor = UncertaintyMonitor(table=False)
    if before:
        adopt(host, TASKS, PARTS[kind], **options)
    callbacks = [monitor, *([] if before else [AdoptLosses(TASKS, PARTS[kind], **options)])]
    options = {"strategy": strategy, "devices": devices, "use_distributed_sampler": False, "max_epochs": 3}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer(callbacks=callbacks, **options).fit(host, Loader(copy.deepcopy(rows(16))))
    warned = [str(one.message) for one in told if "means count alike" in str(one.message)]
    own = host._own_state() if isinstance(host, MultiTaskMixin) else {}
    skipped = getattr(host, "skipped_steps", 0)
    return {"state": {**host.state_dict(), **own}, "rows": monitor.history.rows, "warned": warned, "skipped": skipped}


def run(cells):
    return {cell: fit(cell, DDPStrategy(timeout=TIMEOUT), RANKS) for cell in cells}
