"""A fitted module that predicts, on one process and on two."""

from functools import partial

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from lightning_uncertainty import MultiTaskModule, Task
from lightning_uncertainty.likelihoods import HeteroscedasticGaussian
from lightning_uncertainty.tasks import HeteroscedasticHead
from tests._launch import RANKS
from tests._nets import columns, trainer

ROWS = 12
STRATEGIES = {"ddp": lambda: "ddp", "fsdp2": lambda: ModelParallelStrategy(RANKS, 1)}


class Predicting(MultiTaskModule):
    """One task of every kind; sharded where there is a mesh."""

    def __init__(self, samples: int) -> None:
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2))
        tasks = {
            "depth": Task("gaussian", head=nn.Linear(8, 1)),
            "kind": Task("categorical", head=nn.Linear(8, 3)),
            "width": Task(
                HeteroscedasticGaussian(), head=HeteroscedasticHead(nn.Linear(8, 1), nn.Linear(8, 1)), target="depth"
            ),
        }
        super().__init__(backbone, tasks, inputs="x", samples=samples)

    def on_train_start(self):
        self.backbone.eval()  # every process draws masks of its own

    def configure_model(self):
        first = next(self.backbone.parameters())
        if self.device_mesh is not None and not isinstance(first, DTensor):  # it is called before every run
            for part in [self.backbone, *self.task_heads.values(), self.task_weighting]:
                fully_shard(part, mesh=self.device_mesh["data_parallel"])


def loader() -> DataLoader:
    torch.manual_seed(1)  # the same rows whatever was drawn before
    table = columns(ROWS)
    return DataLoader([{name: column[row] for name, column in table.items()} for row in range(ROWS)], batch_size=3)


def predict(samples: int, ranks: int, strategy: str = "ddp"):
    """Return predictions by batch, of this rank; each is given its share under DDP, and all under FSDP2."""

    def options():
        return {"devices": ranks, "strategy": STRATEGIES[strategy]()} if ranks > 1 else {}

    net = Predicting(samples)
    fitting = trainer(max_epochs=1, use_distributed_sampler=False, **options())
    fitting.fit(net, loader())  # the same batches on every rank
    return trainer(use_distributed_sampler=strategy == "ddp", **options()).predict(net, loader())


EVERY = {f"{each}-{samples}": partial(predict, samples, RANKS, each) for each in STRATEGIES for samples in (1, 20)}


def run(cells):
    return {cell: EVERY[cell]() for cell in cells}
