"""The well-known toy of uncertainty weighting: two regressions on one input, with noise of 10 and of 1.

What it shows: σ is true. Both σ come within 2 %, on average over epochs, of the root mean squared errors that their
networks have over the training set. Run one of the modes:

    python -m lightning_uncertainty.examples.toy [ours | large | switch | blog]

ours    300 epochs, with log-variances learnt (start from the data, ten times the network's learning rate) and in closed
        form: within 2 % on average over epochs 150 to 300 the first, 25 to 300 the second.
large   500 epochs on labels of some hundreds, from the first epoch; the blog's way is then at σ = 1.2 and 1.3, beside
        residuals of 35 and 95.
switch  300 epochs on the first data, then 200 on the large labels: the closed form is true again 50 epochs later. (The
        networks then learn slowly: Adam remembers, for a thousand steps, gradients weighted for the small labels.)
blog    2000 epochs as the usual public code does it: σ starts at 1 and learns at the network's rate. It ends at
        σ = 8.59 and 0.90, often quoted as "recovering" 10 and 1. That is a transient: the residuals are 9.70 and 0.90,
        and the first σ is still climbing, as Adam moves s = log σ² by at most about a learning rate a step.

What it does not show: that weighting helps. The two networks are disjoint, and Adam does not care for a constant factor
on a gradient, so fixed weights end at the same residuals. Nor is σ the true noise: networks that learn some of 100
points by heart leave residuals below it, and more so the longer they train.

The method is Kendall, Gal & Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
Semantics", CVPR 2018.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_uncertainty import MultiTaskMixin
from lightning_uncertainty.weightings import AnalyticUncertaintyWeighting, UncertaintyWeighting, Weighting

WEIGHTINGS: Mapping[str, Callable[[], Weighting]] = {
    "learned": UncertaintyWeighting,
    "analytic": AnalyticUncertaintyWeighting,
    "blog": lambda: UncertaintyWeighting(start=0.0, memory=None),  # σ = 1, whatever the data; the gradient as published
}


def lines(slopes: tuple[float, float], intercepts: tuple[float, float], noise: tuple[float, float]) -> TensorDataset:
    """Return 100 points of two noisy lines over one x ~ N(0, 1): tensors x, y1, y2, `[100, 1]` each."""
    random = np.random.RandomState(0)  # numpy's old generator, and x, y1, y2 in this order: the published numbers
    x = random.randn(100, 1)
    y1, y2 = (a * x + b + std * random.randn(100, 1) for a, b, std in zip(slopes, intercepts, noise, strict=True))
    return TensorDataset(*(torch.tensor(values, dtype=torch.float32) for values in (x, y1, y2)))


SMALL = lines((2.0, 3.0), (8.0, 3.0), noise=(10.0, 1.0))
LARGE = lines((200.0, 300.0), (800.0, 300.0), noise=(10.0, 100.0))  # and now the other task is the noisy one


class Toy(MultiTaskMixin, LightningModule):
    """Two networks of one hidden layer, each a task, with one total loss."""

    def __init__(self, kind: str, *phases: tuple[TensorDataset, int]) -> None:
        super().__init__()
        self.phases = phases  # (data, epochs): one, or two in turn
        self.net1, self.net2 = (nn.Sequential(nn.Linear(1, 1024), nn.ReLU(), nn.Linear(1024, 1)) for _ in range(2))
        self.blog = kind == "blog"
        self.register_tasks({"y1": "gaussian", "y2": "gaussian"}, weighting=WEIGHTINGS[kind]())
        self.curve: list[list[list[float]]] = []  # epochs x (σ, RMSE) x tasks

    def losses(self, x: Tensor, y1: Tensor, y2: Tensor) -> dict[str, Tensor]:
        """Return mean squared errors; x, y1, y2 are `[B, 1]` each."""
        return {"y1": (self.net1(x) - y1).square().mean(), "y2": (self.net2(x) - y2).square().mean()}

    def data(self) -> TensorDataset:
        """Return the data of this epoch's phase."""
        first, epochs = self.phases[0]
        return first if self.current_epoch < epochs else self.phases[-1][0]

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.data(), batch_size=20, shuffle=True)  # 5 steps an epoch

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        """Weigh the two losses: the one line that this package adds to the step."""
        return self.weigh(self.losses(*batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Give the log-variances their own learning rate, except in the blog's mode."""
        if self.blog:  # s at the network's learning rate and betas, and the eps of Keras
            return torch.optim.Adam(self.parameter_groups(lr=1e-3, log_variance_lr=1e-3, betas=(0.9, 0.999)), eps=1e-7)
        return torch.optim.Adam(self.parameter_groups(lr=1e-3))

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        """Note σ beside the RMSE over the whole training set, which it should equal."""
        mse = self.losses(*self.data().tensors)
        self.curve.append([list(self.sigma().values()), [loss.sqrt().item() for loss in mse.values()]])


def train(kind: str, *phases: tuple[TensorDataset, int], seed: int = 0) -> Tensor:
    """Train on one or two (data, epochs) in turn; return σ and RMSE by epoch `[epochs, 2, 2]`: (σ, RMSE), task."""
    torch.manual_seed(seed)
    toy = Toy(kind, *phases)
    trainer = Trainer(
        max_epochs=sum(epochs for _, epochs in phases),
        reload_dataloaders_every_n_epochs=phases[0][1],
        accelerator="cpu",  # a network of this size gains nothing from another
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(toy)
    return torch.tensor(toy.curve)


def gap(curve: Tensor) -> Tensor:
    """Return |σ / RMSE - 1| by task `[2]`, the mean over the epochs of a curve `[epochs, 2, 2]`."""
    return (curve[:, 0] / curve[:, 1] - 1).abs().mean(dim=0)


MODES: Mapping[str, tuple[tuple[str, ...], tuple[tuple[TensorDataset, int], ...]]] = {
    "ours": (("learned", "analytic"), ((SMALL, 300),)),
    "large": (("learned", "analytic"), ((LARGE, 500),)),
    "switch": (("analytic",), ((SMALL, 300), (LARGE, 200))),
    "blog": (("blog",), ((SMALL, 2000),)),
}


def main(arguments: list[str] | None = None) -> None:
    """Train what a mode names and print one row for each run: values of the last epoch, gaps over the last 150."""
    parser = argparse.ArgumentParser(description="Two noisy lines: does σ equal the residual?")
    parser.add_argument("mode", nargs="?", default="ours", choices=MODES)
    kinds, phases = MODES[parser.parse_args(arguments).mode]
    print("run           σ1    RMSE1   gap1       σ2    RMSE2   gap2")
    for kind in kinds:
        curve = train(kind, *phases)
        (sigma1, sigma2), (rmse1, rmse2) = curve[-1].tolist()
        gap1, gap2 = gap(curve[-150:]).tolist()
        print(f"{kind:8} {sigma1:8.3f} {rmse1:8.3f} {gap1:6.1%} {sigma2:8.3f} {rmse2:8.3f} {gap2:6.1%}")


if __name__ == "__main__":
    for name in ("pytorch_lightning", "lightning.pytorch"):  # where both are installed, one speaks for both
        logging.getLogger(name).setLevel(logging.ERROR)  # a table, not the news of a Trainer
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    main()
