"""A module whose batches follow from epoch and number alone."""

from __future__ import annotations

import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from lightning_uncertainty import UncertaintyWarmUp, UncertaintyWeighting
from tests._launch import RANKS
from tests._nets import Owning, tensors, trainer

BATCHES = 5  # in an epoch
ROWS = 12  # of all ranks together


def batch_of(epoch: int, index: int) -> dict[str, torch.Tensor]:
    """Twelve rows; rank 0 of two has most labels of `depth`, and one rank alone those of `kind` in some batches."""
    rng = torch.Generator().manual_seed(100 * epoch + index)
    x = torch.randn(ROWS, 4, generator=rng)
    depth = 3 * x[:, 0] + torch.randn(ROWS, generator=rng)
    kind = x[:, :3].argmax(1)
    depth[1:10:2] = torch.nan
    depth[8:] = torch.nan
    if index % 2:
        kind[6:] = -100
    return {"x": x, "depth": depth, "kind": kind}


class Drawn(Owning):
    """Owning, with a row of what was logged for every batch; `make` makes an optimizer of groups."""

    def __init__(self, weighting=None, make=lambda groups: torch.optim.Adam(groups, lr=1e-2)):
        super().__init__(weighting)
        self.make = make
        self.rows = []

    def train_dataloader(self):
        return DataLoader(range(BATCHES), batch_size=None)

    def training_step(self, batch, batch_idx):
        share = ROWS // self.trainer.world_size
        own = slice(self.global_rank * share, (self.global_rank + 1) * share)
        whole = batch_of(self.current_epoch, batch_idx)
        return super().training_step({name: column[own] for name, column in whole.items()}, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.rows.append(self.take_row())

    def configure_model(self):
        if self.device_mesh is not None:  # FSDP2
            for part in (self.trunk, *self.task_heads.values(), self.task_weighting):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self):
        return self.make(self.parameter_groups(lr=1e-2))


HOLD = {"steps": 8}
BLEND = {"epochs": 2, "blend_from": {"depth": 0.1}}
STRATEGIES = {
    "ddp": lambda: "ddp",
    "static graph": lambda: DDPStrategy(static_graph=True, gradient_as_bucket_view=True),
    "shards": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
}
CASES = {
    f"{name}, {strategy}": (arguments, strategy)
    for name, arguments in (("hold", HOLD), ("blend", BLEND))
    for strategy in STRATEGIES
}


def fit(case: str, **options) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Train a case from seed 0, past its warm-up; return tensors and rows."""
    arguments, strategy = CASES[case]
    torch.manual_seed(0)
    net = Drawn(UncertaintyWeighting())
    warm_up = UncertaintyWarmUp(**arguments)
    precision = "32-true" if strategy == "shards" else "64-true"
    trainer(max_epochs=3, callbacks=[warm_up], precision=precision, limit_val_batches=0, **options).fit(net)
    whole = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in tensors(net).items()}
    return whole, net.rows


def run(cells):
    options = {"devices": RANKS, "use_distributed_sampler": False}
    return {case: fit(case, strategy=STRATEGIES[CASES[case][1]](), **options) for case in cells}
