"""Palmer penguins: species, sex, body mass and flipper length of real birds, from their bill, island and year.

Four tasks of three kinds, with missing labels and losses that differ by six orders of magnitude: a cross-entropy near 1
and a squared error in grams near 10⁵. The data are described in PENGUINS.md beside this file.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Accuracy, MeanSquaredError

from lightning_uncertainty import MultiTaskMixin, Task
from lightning_uncertainty.tasks import Rescale, Stage
from lightning_uncertainty.weightings import Weighting

__all__ = ["MEASURES", "Birds", "PenguinData", "PenguinNet", "RegressionHead", "Trunk", "load_penguins", "mean_and_std"]

ISLANDS = ("Biscoe", "Dream", "Torgersen")
SPECIES = ("Adelie", "Chinstrap", "Gentoo")
MEASURES = {  # what a reader calls it, and its class
    "species": ("accuracy", "MulticlassAccuracy"),
    "sex": ("accuracy", "BinaryAccuracy"),
    "body_mass_g": ("RMSE, g", "MeanSquaredError"),
    "flipper_length_mm": ("RMSE, mm", "MeanSquaredError"),
}


@dataclass(frozen=True)
class Birds(Dataset[dict[str, Tensor]]):
    """Columns of N birds; each item is one bird.

    Attributes:
        columns: `features` `[N, 6]`, standardised; `species` `[N]`, class indices; `sex` `[N]`, 1 male, 0 female, NaN
            unknown; `body_mass_g` and `flipper_length_mm` `[N]`, NaN where not measured.
    """

    columns: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.columns["species"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}

    def part(self, index: Tensor | slice) -> Birds:
        """Return the birds at an index."""
        return Birds({name: column[index] for name, column in self.columns.items()})

    def loader(self, *, shuffle: bool = False, seed: int = 0) -> DataLoader[dict[str, Tensor]]:
        """Return batches of 32 birds, in an order given by the seed."""
        return DataLoader(self, batch_size=32, shuffle=shuffle, generator=torch.Generator().manual_seed(seed))


def load_penguins(seed: int = 0, held_out: float = 0.25) -> tuple[Birds, Birds]:
    """Return training and held-out birds, split at random by the seed; features are standardised by the former.

    Example:
        >>> train, test = load_penguins()
        >>> len(train), len(test), int(train[:]["sex"].isnan().sum() + test[:]["sex"].isnan().sum())
        (258, 86, 11)
    """
    text = files("lightning_uncertainty.examples").joinpath("penguins.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))

    def numbers(column: str) -> Tensor:
        return torch.tensor([float("nan") if row[column] == "NA" else float(row[column]) for row in rows])

    island = torch.tensor([[float(row["island"] == name) for name in ISLANDS] for row in rows])
    measured = torch.stack([numbers(column) for column in ("bill_length_mm", "bill_depth_mm", "year")], dim=1)
    columns = {
        "features": torch.cat([measured, island], dim=1),
        "species": torch.tensor([SPECIES.index(row["species"]) for row in rows]),
        "sex": torch.tensor([{"male": 1.0, "female": 0.0}.get(row["sex"], float("nan")) for row in rows]),
        "body_mass_g": numbers("body_mass_g"),
        "flipper_length_mm": numbers("flipper_length_mm"),
    }
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    test, train = order.tensor_split([round(held_out * len(rows))])
    mean, std = mean_and_std(columns["features"][train])
    columns["features"] = ((columns["features"] - mean) / std).nan_to_num()  # unmeasured: the mean
    birds = Birds(columns)
    return birds.part(train), birds.part(test)


def mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over rows, NaN left out."""
    mean = x.nanmean(0)
    return mean, (x - mean).square().nanmean(0).sqrt()


class Trunk(nn.Sequential):
    """From the features of a bird `[B, 6]` to what the heads share `[B, 32]`.

    Args:
        dropout: share of the hidden units that a training step leaves out.
    """

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__(nn.Linear(6, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 32), nn.ReLU())


class RegressionHead(nn.Sequential):
    """A linear layer from the trunk `[B, 32]` to one measurement in its own unit `[B, 1]`.

    Args:
        mean: mean of the training labels.
        std: their standard deviation.
    """

    def __init__(self, mean: float, std: float) -> None:
        super().__init__(nn.Linear(32, 1), Rescale(mean, std))


class PenguinNet(MultiTaskMixin, LightningModule):
    """A small shared trunk and a linear head per task; regression heads are rescaled to grams and millimetres.

    Args:
        train: the training birds, for the scales of the regression heads.
        weighting: how the four losses become one.
        lr: learning rate of the network.
    """

    def __init__(self, train: Birds, weighting: Weighting | None = None, lr: float = 3e-3) -> None:
        super().__init__()
        self.lr = lr
        self.trunk = Trunk()

        def regression(column: str) -> Task:
            mean, std = mean_and_std(train.columns[column])
            return Task(
                "gaussian", head=RegressionHead(mean.item(), std.item()), metrics=MeanSquaredError(squared=False)
            )

        self.register_tasks(
            {
                "species": Task("categorical", head=nn.Linear(32, 3), metrics=Accuracy("multiclass", num_classes=3)),
                "sex": Task("bernoulli", head=nn.Linear(32, 1), metrics=Accuracy("binary")),
                "body_mass_g": regression("body_mass_g"),
                "flipper_length_mm": regression("flipper_length_mm"),
            },
            weighting=weighting,
        )

    def _step(self, batch: dict[str, Tensor], stage: Stage) -> Tensor | None:
        return self.task_step(self.trunk(batch["features"]), batch, stage)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        return self._step(batch, "train")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        return self._step(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        return self._step(batch, "test")

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameter_groups(lr=self.lr, weight_decay=0.1))


class PenguinData(LightningDataModule):
    """The penguins as `penguins.yaml` beside this file takes them: batches are dicts of columns, as in `Birds`.

    Args:
        seed: decides which birds are held out, and the order of training batches.
        held_out: share of the birds for `test` and `predict`.
        validation: share of the others for `validate`, and for the choice of a checkpoint.
    """

    def __init__(self, seed: int = 0, held_out: float = 0.25, validation: float = 0.2) -> None:
        super().__init__()
        self.seed = seed
        others, self.test = load_penguins(seed, held_out)
        count = round(validation * len(others))
        self.val, self.train = others.part(slice(count)), others.part(slice(count, None))

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self.train.loader(shuffle=True, seed=self.seed)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self.val.loader()

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self.test.loader()

    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self.test.loader()
