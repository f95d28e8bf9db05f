"""Adopted modules that their hosts shard; what ranks run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lightning_uncertainty import AdoptLosses, UncertaintyWeighting
from tests._launch import RANKS
from tests.adoption._hosts import PARTS, TASKS, Loader, rows, seeded
from tests.trainer._adopted import Dealt
from tests.trainer._fsdp2 import make_trainer

WEIGHTINGS = {"analytic": None, "learnt": UncertaintyWeighting()}
CELLS = [f"{name}, {kind}, {parts}" for name in WEIGHTINGS for kind in ("sharded", "full") for parts in ("its", "all")]


class Sharded(Dealt):
    """Shards its parts, or all that it then has."""

    def __init__(self, parts):
        super().__init__()
        self.sharded = parts

    def configure_model(self):
        if self.device_mesh is not None:
            for part in self.children() if self.sharded == "all" else (self.trunk, self.head):
                if any(True for _ in part.parameters()):
                    fully_shard(part, mesh=self.device_mesh["data_parallel"])


def fit(cell: str, ranks: int, epochs: int, save: str | None = None, **options: Any) -> dict[str, Any]:
    """Fit a host that a callback adopts, and return what it is then."""
    name, kind, parts = cell.split(", ")
    host = seeded(Sharded, parts)
    weighting = copy.deepcopy(WEIGHTINGS[name])
    adoption = AdoptLosses(TASKS, PARTS["log"], weighting)
    fitted = make_trainer(ranks, kind == "full", max_epochs=epochs, callbacks=[adoption])
    fitted.fit(host, Loader(copy.deepcopy(rows(16))), **options)
    if save is not None:
        fitted.save_checkpoint(save)
    state = {**host.state_dict(), **host._own_state()}
    whole = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}
    return {"state": {name: value.clone() for name, value in whole.items()}, "sigma": host.sigma()}


def resumed(cell: str, ranks: int) -> dict[str, Any]:
    path = Path(cell.replace(", ", "_"))
    fit(cell, ranks, 1, save=str(path))
    return fit(cell, ranks, 2, ckpt_path=str(path))


def run(cells: list[str]) -> dict[str, Any]:
    return {cell: {"whole": fit(cell, RANKS, 2), "resumed": resumed(cell, RANKS)} for cell in cells}
