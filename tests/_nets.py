"""A tiny two-task module, data for it, and a Trainer that is quiet."""

from __future__ import annotations

import sys

import pytorch_lightning
import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy, MeanAbsoluteError

from lightning_uncertainty import MultiTaskMixin, Task, UncertaintyWeighting
from lightning_uncertainty.weightings import Weighting


class Plain(MultiTaskMixin, LightningModule):
    """Depth 1: it computes its losses."""

    def __init__(self, weighting: Weighting | None = None) -> None:
        super().__init__()
        self.depth, self.kind = nn.Linear(4, 1), nn.Linear(4, 3)
        self.register_tasks({"depth": "gaussian", "kind": "categorical"}, weighting=weighting)

    def losses(self, batch):
        x, depth, kind = batch
        return {
            "depth": F.mse_loss(self.depth(x)[:, 0], depth),
            "kind": F.cross_entropy(self.kind(x), kind),
        }

    def training_step(self, batch, batch_idx):
        return self.weigh(self.losses(batch))

    def validation_step(self, batch, batch_idx):
        self.weigh(self.losses(batch), stage="val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameter_groups(lr=1e-2))


class Owning(MultiTaskMixin, LightningModule):
    """Depth 2: tasks own head, likelihood and metrics; labels may be missing."""

    def __init__(self, weighting: Weighting | None = None) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        self.register_tasks(
            {
                "depth": Task("gaussian", head=nn.Linear(8, 1), metrics=MeanAbsoluteError()),
                "kind": Task("categorical", head=nn.Linear(8, 3), metrics=Accuracy("multiclass", num_classes=3)),
            },
            weighting=weighting or UncertaintyWeighting(),
        )

    def training_step(self, batch, batch_idx):
        return self.task_step(self.trunk(batch["x"]).tanh(), batch, "train")

    def validation_step(self, batch, batch_idx):
        return self.task_step(self.trunk(batch["x"]).tanh(), batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameter_groups(lr=1e-2))


def columns(n: int = 32, missing: bool = False) -> dict[str, torch.Tensor]:
    x = torch.randn(n, 4)
    depth, kind = 3 * x[:, 0] + torch.randn(n), x[:, :3].argmax(1)
    if missing:
        depth[::3], kind[1::4] = torch.nan, -100
    return {"x": x, "depth": depth, "kind": kind}


class Rows(torch.utils.data.Dataset):
    def __init__(self, table):
        self.table = table

    def __len__(self):
        return len(self.table["x"])

    def __getitem__(self, index):
        return {name: column[index] for name, column in self.table.items()}


def tuples(n: int = 32, batch_size: int = 8) -> DataLoader:
    return DataLoader(TensorDataset(*columns(n).values()), batch_size=batch_size)


def dicts(n: int = 32, batch_size: int = 8, missing: bool = False) -> DataLoader:
    return DataLoader(Rows(columns(n, missing)), batch_size=batch_size)


def in_a_row(steps: int) -> DataLoader:
    """The same batches every time, with labels that are missing."""
    rng, batches = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        x = torch.randn(16, 4, generator=rng)
        depth = 3 * x[:, 0] + torch.randn(16, generator=rng)
        depth[::3] = torch.nan
        batches.append({"x": x, "depth": depth, "kind": x[:, :3].argmax(1)})
    return DataLoader(batches, batch_size=None)


def tensors(net) -> dict[str, torch.Tensor]:
    """A copy of the state."""
    return {name: value.clone() for name, value in net.state_dict().items()}


QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
    "max_epochs": 2,
}


def trainer(package=pytorch_lightning, **options):
    return package.Trainer(**{**QUIET, **options})


def read_nothing(monkeypatch):
    """Have no value read on the training path, as on a device where that would wait."""
    for name, module in list(sys.modules.items()):
        if name.startswith("lightning_uncertainty.") and hasattr(module, "reads_values"):
            monkeypatch.setattr(module, "reads_values", lambda device: False)
