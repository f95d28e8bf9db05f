"""Modules of users' own, for the command line."""

import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.nn import functional as F

from lightning_uncertainty import MultiTaskMixin, Task, UncertaintyWeighting
from lightning_uncertainty.weightings import Weighting


class Wide(nn.Module):
    """Another backbone than the example's, with an argument of the same name."""

    def __init__(self, dropout: float = 0.0, width: int = 48) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 32))

    def forward(self, x):
        return self.net(x)


class Own(MultiTaskMixin, LightningModule):
    """Two tasks of the penguins.

    Args:
        width: of the hidden layer.
        weighting: how the losses become one.
    """

    def __init__(self, width: int = 8, weighting: Weighting | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(6, width), nn.ReLU())
        heads = {
            "species": Task("categorical", head=nn.Linear(width, 3)),
            "sex": Task("bernoulli", nn.Linear(width, 1)),
        }
        self.register_tasks(heads, weighting=weighting or UncertaintyWeighting())

    def training_step(self, batch, batch_idx):
        return self.task_step(self.net(batch["features"]), batch, "train")

    def validation_step(self, batch, batch_idx):
        self.task_step(self.net(batch["features"]), batch, "val")

    def test_step(self, batch, batch_idx):
        self.task_step(self.net(batch["features"]), batch, "test")

    def predict_step(self, batch, batch_idx):
        return self.net(batch["features"]).sum(1)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameter_groups(lr=1e-2))


class Theirs(LightningModule):
    """Knows nothing of this package."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net, self.kind = nn.Sequential(nn.Linear(6, width), nn.ReLU()), nn.Linear(width, 3)
        self.flipper = nn.Linear(width, 1)

    def training_step(self, batch, batch_idx):
        features = self.net(batch["features"])
        kind = F.cross_entropy(self.kind(features), batch["species"])
        flipper = F.mse_loss(self.flipper(features), batch["flipper_length_mm"].nan_to_num(200).view(-1, 1) / 200)
        self.log("kind", kind)
        self.log("flipper", flipper)
        return kind + flipper

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)
