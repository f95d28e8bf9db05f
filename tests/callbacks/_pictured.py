"""A fit with pictures on two processes, and one without."""

from __future__ import annotations

from pathlib import Path

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lightning_uncertainty import PredictionImages
from tests._launch import RANKS
from tests._nets import tensors, trainer
from tests.callbacks._shapes import Shapes, scenes


class Sharded(Shapes):
    """Its parts are sharded, so that a rank that predicts needs the others."""

    def configure_model(self):
        for part in (self.trunk, *self.task_heads.values(), self.task_weighting):
            fully_shard(part, mesh=self.device_mesh["data_parallel"])


CASES = {
    "ddp": (Shapes, lambda: "ddp", True),
    "ddp without": (Shapes, lambda: "ddp", False),
    "fsdp2": (Sharded, lambda: ModelParallelStrategy(RANKS, 1), True),
}


def fit(case: str) -> dict:
    """Return the names of the pictures that this rank has drawn, and the state at the end."""
    make, strategy, pictured = CASES[case]
    drawn = []
    callback = PredictionImages(2, folder=case, samples=2)
    draw = callback._drawing.pictures
    callback._drawing.pictures = lambda *given: drawn.append(1) or draw(*given)
    torch.manual_seed(0)
    net, callbacks = make(), [callback] if pictured else []
    options = {"strategy": strategy(), "devices": RANKS, "callbacks": callbacks}
    trainer(max_epochs=2, num_sanity_val_steps=0, **options).fit(net, scenes(8), scenes(4, first=100))
    state = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in tensors(net).items()}
    torch.distributed.barrier()  # what the first rank has written is there
    return {"drawn": len(drawn), "names": sorted(path.name for path in Path(case).glob("*")), "state": state}


def run(cells):
    return {case: fit(case) for case in cells}
