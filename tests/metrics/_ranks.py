"""Metrics of two ranks that observe different things; what each rank computes, twice, and after more labels."""

from __future__ import annotations

import warnings

import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAveragePrecision

from lightning_uncertainty import Task
from lightning_uncertainty.metrics import ObservedMetric
from tests._nets import Owning, Rows, dicts, trainer
from tests.metrics._torchmetrics import draw, made, r2_of_each

BATCHES = {"one": ((9, 0, 7), ()), "other": ((), (9, 7)), "uneven": ((9, 4, 3), (5,)), "none": ((0,), ())}
"""How many labels the batches of each rank have."""


def shares(name, split):
    """The batches of each rank, all different."""
    return [[draw(name, size, seed=10 * rank + i) for i, size in enumerate(BATCHES[split][rank])] for rank in (0, 1)]


def updated(name, batches):
    metric = ObservedMetric(made(name))
    torch.manual_seed(0)
    for batch in batches:
        metric.update(*batch)
    return metric


def run(cells: list[str]):
    warnings.simplefilter("ignore")
    return {cell: logged(WORKERS) if cell == "fit" else _two_epochs(*cell.split("/")) for cell in cells}


WORKERS = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}


class Ranked(Owning):
    """Tasks whose metrics refuse an empty state."""

    def __init__(self):
        LightningModule.__init__(self)
        self.trunk = nn.Linear(4, 8)
        ranks = MetricCollection({"r2": made("R2Score"), "rho": made("SpearmanCorrCoef")})
        curve = MulticlassAveragePrecision(3)
        self.register_tasks(
            {
                "depth": Task("gaussian", nn.Linear(8, 1), metrics=ranks),
                "kind": Task("categorical", nn.Linear(8, 3), metrics=curve),
                "pose": Task("gaussian", nn.Linear(8, 3), metrics=r2_of_each(), metrics_on="rows"),
            }
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameter_groups(lr=0.0))  # two ranks see other batches than one process


def logged(options):
    """What a fit logs in whose validation only the first rank has depths, the second a pose, and nobody a kind."""
    torch.manual_seed(0)
    training, validation = dicts(), [dicts(16).dataset.table, dicts(16).dataset.table]
    for table in (training.dataset.table, *validation):
        table["pose"] = torch.randn(len(table["x"]), 3)
    for table in validation:
        table["kind"][:] = -100
    validation[0]["pose"][:] = torch.nan
    validation[1]["depth"][:] = torch.nan
    if options:
        rows = validation[torch.distributed.get_rank()]
    else:
        rows = {name: torch.cat([table[name] for table in validation]) for name in validation[0]}
    fitting = trainer(max_epochs=1, num_sanity_val_steps=2, **options)
    fitting.fit(Ranked(), training, DataLoader(Rows(rows), batch_size=8))
    return fitting.callback_metrics


def _two_epochs(name: str, split: str):
    """Return the value, that after another batch of both ranks, and that of a new epoch in which ranks change."""
    rank = torch.distributed.get_rank()
    metric = updated(name, shares(name, split)[rank])
    values = [metric.compute()]
    metric.update(*draw(name, 6, seed=30 + rank))
    values.append(metric.compute())
    metric.reset()
    for batch in shares(name, split)[1 - rank]:
        metric.update(*batch)
    return [*values, metric.compute()]
