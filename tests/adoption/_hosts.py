"""Modules as somebody else writes them, and the same by hand: what an adopted one must train like."""

from __future__ import annotations

import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.nn import functional as F

from lightning_uncertainty import AnalyticUncertaintyWeighting, MultiTaskMixin

TASKS = {"depth": "laplace", "height": "gaussian"}
WEIGHTS = (0.5, 0.02)


def both(depth, height):
    return {"depth": depth, "height": height}


PARTS = {
    "log": both("log:depth_loss", "log:height_loss"),
    "weight": both("weight:weights[0]", "weight:scale.value"),
    "buffer": both("weight:vector[0]", "weight:vector[1]"),
    "one of a buffer": both("log:depth_loss", "weight:vector[1]"),  # whose other element weighs the first
    "call": both("call:far", "call:criteria@1['tall']"),
    "method": both("call:criteria@0['near']", "call:tall_of"),
    "function": both("function:torch.nn.functional.l1_loss", "function:torch.nn.functional.mse_loss@1"),
    "own function": both("log:depth_loss", "function:tests.adoption._hosts.squares"),
    "mixed": both("call:far@0", "weight:scale.value"),
}


def squares(made, label):
    return F.mse_loss(made, label)


class Scale:
    def __init__(self, value):
        self.value = value


class Host(LightningModule):
    """Weighs its losses in every way that a part can be named by: by numbers, or else by a buffer."""

    def __init__(self, lr=1e-2, buffer=False):
        super().__init__()
        self.save_hyperparameters("lr", "buffer")
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 2)
        self.far = nn.L1Loss()
        numbers, vector = ((1.0, 1.0), WEIGHTS) if buffer else (WEIGHTS, (1.0, 1.0))
        self.weights = [numbers[0], 3.0]
        self.scale = Scale(numbers[1])
        self.register_buffer("vector", torch.tensor([vector]))

    def losses(self, batch):
        made = self.head(self.trunk(batch["x"]))
        return self.far(made[:, 0], batch["depth"]), self.tall_of(made, batch)

    def tall_of(self, made, batch):
        F.mse_loss(made[:, 0].detach(), batch["depth"])  # what a metric would do
        return squares(made[:, 1], batch["height"])

    def criteria(self, near, tall):
        return {"near": near, "tall": tall, "count": 3}

    def training_step(self, batch, batch_idx):
        near, tall = self.losses(batch)
        near = self.criteria(near, tall)["near"]
        tall = self.criteria(near, tall)["tall"]
        self.log("depth_loss", near)
        self.log_dict({"height_loss": tall, "number": 3.0})
        total = near * self.weights[0] * self.vector[0, 0]
        total += self.scale.value * self.vector[0, 1] * tall
        self.log("train_loss", total)
        return total

    def validation_step(self, batch, batch_idx):
        near, tall = self.losses(batch)
        self.log_dict({"val_depth": near, "val_height": tall.item()})

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


class ByHand(MultiTaskMixin, Host):
    """The same host, whose step was written anew."""

    def __init__(self, weighting=None, lr=1e-2):
        super().__init__(lr)
        self.register_tasks(TASKS, weighting=weighting or AnalyticUncertaintyWeighting())

    def training_step(self, batch, batch_idx):
        near, tall = self.losses(batch)
        return self.weigh({"depth": near, "height": tall})

    def validation_step(self, batch, batch_idx):
        near, tall = self.losses(batch)
        self.weigh({"depth": (near * len(batch["x"]), len(batch["x"])), "height": (tall * 4, 4)}, stage="val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameter_groups(lr=self.hparams.lr))


class Loader(list):
    """A loader of batches that are made."""


def rows(count=16, seed=0):
    """Batches of four."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=rng, dtype=torch.float64)
    noise = torch.randn(count, 2, generator=rng, dtype=torch.float64)
    depth, height = x[:, 0] + noise[:, 0], 50 * x[:, 1] + 20 * noise[:, 1]
    columns = {"x": x, "depth": depth, "height": height}
    return [{name: value[at : at + 4] for name, value in columns.items()} for at in range(0, count, 4)]


def host_of(kind):
    """Build the host that weighs as a kind of part needs it, in float64."""
    return seeded(Host, buffer="vector" in PARTS[kind]["height"])


def seeded(kind, *args, **kwargs):
    """Build a module in float64, always alike."""
    torch.manual_seed(0)
    return kind(*args, **kwargs).double()
