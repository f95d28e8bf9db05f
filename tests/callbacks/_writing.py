"""Two processes that predict rows dealt out among them, and write them."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_uncertainty import MultiTaskModule, Task
from lightning_uncertainty.callbacks import PredictionWriter
from lightning_uncertainty.predictions import Sampling
from tests._launch import RANKS
from tests._nets import Rows, columns, trainer

ROWS = 11  # which two processes cannot share alike


def net(samples: int = 1) -> MultiTaskModule:
    torch.manual_seed(0)
    tasks = {"depth": Task("gaussian", head=nn.Linear(8, 1)), "kind": Task("categorical", head=nn.Linear(8, 3))}
    backbone = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5))
    module = MultiTaskModule(backbone, tasks, inputs="x", samples=samples, sampling=Sampling(seed=1))
    module.task_weighting.log_variance.fill_(0.0)
    return module


def rows() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return columns(ROWS)


def loader() -> DataLoader:
    return DataLoader(Rows(rows()), batch_size=2)


def run(cells):
    for cell in cells:
        writer = PredictionWriter(cell)
        options = {"devices": RANKS, "strategy": "ddp", "use_distributed_sampler": cell == "dealt"}
        trainer(callbacks=[writer], **options).predict(net(), loader(), return_predictions=False)
    return {}
