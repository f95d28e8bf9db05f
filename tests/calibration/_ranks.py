"""Recalibration and assessment by two ranks, of which one may have no label of a task."""

from __future__ import annotations

import warnings

import torch
from pytorch_lightning import LightningModule

from lightning_uncertainty import MultiTaskMixin, UncertaintyWeighting
from lightning_uncertainty.calibration import assess, recalibrate


class Passing(MultiTaskMixin, LightningModule):
    """Its inputs are its outputs."""

    def __init__(self, tasks, weighting=None):
        super().__init__()
        self.register_tasks(tasks, weighting=weighting or UncertaintyWeighting())

    def forward(self, outputs):
        return dict(outputs)


def batch(cell: str) -> dict:
    """Forty rows; labels lie in the first half alone, everywhere, or are ten a rank."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(40, 3)
    labels = torch.distributions.Categorical(logits=logits / 2).sample()
    depth = 2 * torch.randn(40)
    if cell != "both":
        missing = torch.arange(40) % 20 >= 10 if cell == "few" else torch.arange(40) >= 20
        labels[missing], depth[missing] = -100, torch.nan
    return {"outputs": {"depth": torch.zeros(40), "kind": logits}, "depth": depth, "kind": labels}


def run_cell(cell: str, rank: int, ranks: int) -> dict:
    """Return what a rank finds that has its share of the rows."""
    whole, share = batch(cell), slice(rank * 40 // ranks, (rank + 1) * 40 // ranks)
    own = {name: column[share] for name, column in whole.items() if name != "outputs"}
    own["outputs"] = {name: column[share] for name, column in whole["outputs"].items()}
    net = Passing({"depth": "gaussian", "kind": "categorical"})
    net.task_weighting.log_variance.fill_(0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = assess(net, [own], inputs="outputs").rows()
        found = recalibrate(net, [own], inputs="outputs", min_labels=20 if cell == "one" else 25)
    return {
        "rows": rows,
        "kept": sorted(found.kept),
        "after": {name: net.task_calibration.of(name).item() for name in net.task_likelihoods()},
    }


def run(cells):
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return {cell: run_cell(cell, rank, ranks) for cell in cells}
