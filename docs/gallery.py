"""Draws the pictures of "Reading the dashboard": one net fitted four times, with one thing changed each time.

    python docs/gallery.py [FOLDER]

It writes `gallery_<situation>.png` into the folder, `docs/images` where none is given, in under a minute.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_uncertainty import MultiTaskMixin, UncertaintyMonitor
from lightning_uncertainty.weightings import Weighting

LR = 3e-3


class Field(MultiTaskMixin, LightningModule):
    """Three tasks over the plane: a height, a price in the hundreds, and on which side of a line a point lies."""

    def __init__(self, weighting: Weighting | None = None, log_variance_lr: float | None = None) -> None:
        super().__init__()
        self.log_variance_lr = log_variance_lr
        self.trunk = nn.Sequential(nn.Linear(2, 64), nn.Tanh())
        self.height, self.price, self.side = nn.Linear(64, 1), nn.Linear(64, 1), nn.Linear(64, 2)
        self.register_tasks({"height": "gaussian", "price": "laplace", "side": "categorical"}, weighting=weighting)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Weigh the three mean losses."""
        x, height, price, side = batch
        z = self.trunk(x)
        return self.weigh(
            {
                "height": F.mse_loss(self.height(z), height),
                "price": F.l1_loss(100 * self.price(z), price),
                "side": F.cross_entropy(self.side(z), side),
            }
        )

    def configure_optimizers(self) -> Any:
        """Give the log-variances ten times the rate of the network, or what they are told to have."""
        return torch.optim.Adam(self.parameter_groups(lr=LR, log_variance_lr=self.log_variance_lr))


def points(wrong_sides: float = 0.1) -> DataLoader[tuple[Tensor, ...]]:
    """Return 1024 points; the noise deviates by 0.5 in the height and by 30 in the price, some sides are wrong."""
    random = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(1024, 2, generator=random) - 1
    x[:, 0] += 0.1 * x[:, 0].sign()  # a strip between the sides
    height = 10 * x[:, :1] + 0.5 * torch.randn(1024, 1, generator=random)
    one, other = torch.empty(2, 1024, 1).exponential_(generator=random)
    price = 500 * x[:, 1:].square() + 30 * (one - other) / 2**0.5  # Laplace
    side = (x[:, 0] > 0) ^ (torch.rand(1024, generator=random) < wrong_sides)
    data = TensorDataset(x, height, price, side.long())
    return DataLoader(data, batch_size=64, shuffle=True, generator=random)


def fit(net: Field, data: DataLoader[tuple[Tensor, ...]], epochs: int = 75) -> UncertaintyMonitor:
    """Fit quietly, with a row every epoch, and return the monitor."""
    monitor = UncertaintyMonitor(table=False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[monitor],
        log_every_n_steps=16,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(net, data)
    return monitor


def all_well() -> UncertaintyMonitor:
    """Nothing is changed."""
    torch.manual_seed(0)
    return fit(Field(), points())


def still_falling() -> UncertaintyMonitor:
    """The log-variances learn at the network's rate, as in `Adam(self.parameters())`: residuals fall faster."""
    torch.manual_seed(0)
    return fit(Field(log_variance_lr=LR), points())


def taking_all(weighting: Weighting | None = None) -> UncertaintyMonitor:
    """No side is wrong: the classifier can bring its loss to zero."""
    torch.manual_seed(0)
    return fit(Field(weighting), points(wrong_sides=0.0))


def stuck() -> UncertaintyMonitor:
    """The log-variances are frozen."""
    torch.manual_seed(0)
    net = Field()
    net.task_weighting.requires_grad_(False)
    return fit(net, points())


@dataclass(frozen=True)
class Situation:
    """A fit, and the two kinds of curve that tell what it is.

    Attributes:
        fit: trains and returns what the monitor saw.
        panels: kinds of `UncertaintyMonitor.plot`, with the title of each panel.
    """

    fit: Callable[..., UncertaintyMonitor]
    panels: Mapping[str, str]


SITUATIONS: Mapping[str, Situation] = {
    "all_well": Situation(all_well, {"sigma": "σ levels off", "sigma_gap": "... at its optimum"}),
    "still_falling": Situation(still_falling, {"sigma": "σ falls in straight lines", "sigma_gap": "... late"}),
    "taking_all": Situation(
        taking_all, {"sigma": "One σ falls and falls", "weight": "... and its weight grows without end"}
    ),
    "stuck": Situation(stuck, {"sigma": "σ does not move", "sigma_gap": "... and its optimum does"}),
}


def draw(situation: Situation, path: Path) -> None:
    """Train, and save the two panels side by side."""
    from matplotlib.figure import Figure

    monitor = situation.fit()
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (kind, title), axes in zip(situation.panels.items(), (left, right), strict=True):
        monitor.plot(kind, ax=axes)
        axes.set_title(title, fontsize="medium")
        axes.grid(alpha=0.3)
    left.get_legend().remove()
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


def main(folder: Path) -> None:
    """Draw all situations into a folder."""
    torch.set_num_threads(1)
    for name in ("pytorch_lightning", "lightning.pytorch"):  # where both are installed, one speaks for both
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for name, situation in SITUATIONS.items():
        draw(situation, folder / f"gallery_{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
