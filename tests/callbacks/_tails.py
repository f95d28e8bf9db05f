"""Fits whose ends fall between logging steps, on one process or two."""

from __future__ import annotations

import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping

from lightning_uncertainty import UncertaintyMonitor, UncertaintyWeighting
from tests._launch import RANKS
from tests._nets import trainer
from tests.callbacks._drawn import Drawn

KEY = "sigma_gap/kind"


class Read(Callback):
    """What callbacks of every kind find, though they stand before the monitor."""

    def __init__(self):
        self.found = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.found.append(trainer.callback_metrics[KEY].item())


class Quiet(Drawn):
    """Leaves its rows to the monitor."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        pass


def fit(accumulated: int, **options):
    """Three epochs of five batches, a row for every four steps; return rows and what was read."""
    torch.manual_seed(0)
    monitor, read = UncertaintyMonitor(table=False), Read()
    stop = EarlyStopping(KEY, patience=9, check_on_train_epoch_end=True)
    options = {"max_epochs": 3, "limit_val_batches": 0, "log_every_n_steps": 4, "precision": "64-true", **options}
    fitted = trainer(callbacks=[read, stop, monitor], accumulate_grad_batches=accumulated, **options)
    fitted.fit(Quiet(UncertaintyWeighting(start=0.0)))
    return {"rows": monitor.history.rows, "read": read.found, "best": stop.best_score.item()}


def run(cells):
    return {cell: fit(int(cell), strategy="ddp", devices=RANKS, use_distributed_sampler=False) for cell in cells}
