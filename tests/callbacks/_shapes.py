"""Scenes of a few shapes with exact classes, offsets and depth, and modules that learn them."""

from __future__ import annotations

import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_uncertainty import MultiTaskMixin, Task, UncertaintyWeighting
from lightning_uncertainty.likelihoods import Categorical, HeteroscedasticLaplace
from lightning_uncertainty.tasks import HeteroscedasticHead

CLASSES = ["ground", "box", "ball"]
HEIGHT, WIDTH = 32, 48


def scene(number: int) -> dict[str, torch.Tensor]:
    """A box and a ball before a ground that recedes; of some pixels no class, of others no depth is known."""
    rng = torch.Generator().manual_seed(number)
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    depth = 10.0 - 6.0 * y / HEIGHT
    kind = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    ids = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    offsets = torch.full((2, HEIGHT, WIDTH), torch.nan)
    for shape in (1, 2):
        cy, cx = (int(torch.randint(8, size - 8, (), generator=rng)) for size in (HEIGHT, WIDTH))
        inside = ((y - cy).abs() < 7) & ((x - cx).abs() < 6) if shape == 1 else (y - cy) ** 2 + (x - cx) ** 2 < 49
        kind[inside], ids[inside] = shape, shape
        depth[inside] = 2.0 + shape
        offsets[:, inside] = torch.stack([x - cx, y - cy]).float()[:, inside]
    colour = torch.tensor([[0.3, 0.5, 0.3], [0.8, 0.2, 0.2], [0.2, 0.3, 0.9]])[kind].permute(2, 0, 1)
    image = colour * (1.2 - depth / 12) + 0.05 * torch.randn(3, HEIGHT, WIDTH, generator=rng)
    kind[:3] = 255
    depth[:, :4] = torch.nan
    return {"image": image, "semantics": kind, "offsets": offsets, "depth": depth[None], "ids": ids}


class Scenes(Dataset):
    def __init__(self, count: int = 6, first: int = 0) -> None:
        self.rows = [scene(number) for number in range(first, first + count)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


def scenes(count: int = 6, batch_size: int = 2, first: int = 0) -> DataLoader:
    return DataLoader(Scenes(count, first), batch_size=batch_size)


def tasks() -> dict[str, Task]:
    return {
        "semantics": Task(Categorical(ignore_index=255), head=nn.Conv2d(16, 3, 1)),
        "offsets": Task("laplace", head=nn.Conv2d(16, 2, 1)),
        "depth": Task(HeteroscedasticLaplace(), head=HeteroscedasticHead(nn.Conv2d(16, 1, 1), nn.Conv2d(16, 1, 1))),
    }


class Shapes(MultiTaskMixin, LightningModule):
    """A user's own module, which has no forward; with BatchNorm and dropout."""

    def __init__(self, weighting=None, lr: float = 1e-2) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 16, 5, padding=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 5, padding=2),
            nn.ReLU(),
            nn.Dropout(0.1),
        )
        self.lr = lr
        self.register_tasks(tasks(), weighting=weighting or UncertaintyWeighting())

    def training_step(self, batch, batch_idx):
        return self.task_step(self.trunk(batch["image"]), batch, "train")

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.task_step(self.trunk(batch["image"]), batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameter_groups(lr=self.lr))
