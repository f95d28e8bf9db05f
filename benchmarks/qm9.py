"""Eleven properties of small molecules, predicted by one network under many weightings: the table that the guide shows.

The data are QM9 (Ramakrishnan, Dral, Rupp & von Lilienfeld, "Quantum chemistry structures and properties of 134 kilo
molecules", Scientific Data 1, 140022, 2014; CC0), as the PyPI package qm9pack holds them (by R. Ramakrishnan, MIT
licence): 130,831 molecules, without the 3,054 that QM9's authors call uncharacterised. Targets, units and sizes of the
split are those of the published tables (as of Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022,
Table 1): about 110,000 molecules to train on, 10,000 for validation, 10,000 to test. The network is not theirs, a graph
network trained for 300 epochs, but an MLP on 34 numbers a molecule: compare the order of the methods, not the errors.

Every number is of the test molecules after the last epoch. Nothing is chosen by them: the search for fixed weights goes
by the validation molecules and a seed of its own. Learning rate, schedule and size are the same for all methods.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from _comparison import show
from _measure import versions
from _molecules import BATCH, ELEMENTS, MOST_ATOMS, PROPERTIES, load
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchjd.aggregation import UPGradWeighting
from torchmetrics import MeanAbsoluteError, MetricCollection

from lightning_uncertainty import MultiTaskMixin, Task
from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.trials import Measure, compare, search_weights
from lightning_uncertainty.weightings import (
    AnalyticUncertaintyWeighting,
    DynamicTaskPrioritization,
    DynamicWeightAverage,
    FixedWeighting,
    GeometricLossWeighting,
    UncertaintyWeighting,
    Weighting,
)

SUBSET = ("mu", "R2", "U0")  # of the search: one hard, one of medium difficulty, one easy

HIDDEN = 256
LEARNING_RATE = 4e-3  # at the height of the cycle
SEARCH_SEED = 100  # none of those that are compared
PARTS = 6  # 10 points for three tasks

WEIGHTINGS: dict[str, Callable[[], Weighting]] = {
    "equal": FixedWeighting,
    "uncertainty": UncertaintyWeighting,
    "analytic uncertainty": AnalyticUncertaintyWeighting,
    "DWA": DynamicWeightAverage,
    "DTP": partial(DynamicTaskPrioritization, 1.0),  # KPI 1 / (1 + MSE), ½ for who predicts the mean
    "DTP 0.01": partial(DynamicTaskPrioritization, 0.01),  # ½ for an MSE of a hundredth of the labels' variance
    "GLS": GeometricLossWeighting,
    "MGDA-UB": partial(GradientBalancing, "mgda"),  # of the features, a bound
    "MGDA": partial(GradientBalancing, "mgda", on="parameters"),
    "PCGrad": partial(GradientBalancing, "pcgrad"),
    "UPGrad": lambda: GradientBalancing(UPGradWeighting()),
}


# -- model -------------------------------------------------------------------------------------------------------------


class ScaledError(MeanAbsoluteError):
    """The mean absolute error, times a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def compute(self) -> Tensor:
        return self.factor * super().compute()


class Net(MultiTaskMixin, LightningModule):
    """An MLP, with a linear layer for every task."""

    def __init__(self, weighting: Weighting, std: dict[str, float], tasks: Sequence[str] = tuple(PROPERTIES)) -> None:
        super().__init__()
        widths = (len(ELEMENTS) + MOST_ATOMS, HIDDEN, HIDDEN, HIDDEN)
        layers = [(nn.Linear(i, o), nn.SiLU()) for i, o in pairwise(widths)]
        self.trunk = nn.Sequential(*(part for layer in layers for part in layer))
        errors = {task: MetricCollection({"MAE": ScaledError(std[task])}) for task in tasks}
        specified = {task: Task("gaussian", head=nn.Linear(HIDDEN, 1), metrics=errors[task]) for task in tasks}
        self.register_tasks(specified, weighting=weighting)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        return self.task_step(self.trunk(batch["x"]), batch, "train")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.task_step(self.trunk(batch["x"]), batch, "val")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameter_groups(lr=LEARNING_RATE))
        rates = [group["lr"] for group in optimizer.param_groups]
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


# -- tables ------------------------------------------------------------------------------------------------------------


def named(measure: Measure) -> str:
    return f"{measure.task} {PROPERTIES[measure.task][0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", type=int, help="how many, drawn at random; all by default")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "qm9"), help="keeps finished fits")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    torch.set_num_threads(1)

    start = time.monotonic()
    data = load(args.molecules)
    sizes = [f"{len(part):,}" for part in data[:3]]
    packages = versions(("qm9pack", "torch", "pytorch-lightning", "torchjd"))
    print(
        f"$ {' '.join(['python', 'benchmarks/qm9.py', *sys.argv[1:]])}\n\n# QM9\n\n{sizes[0]} molecules for training, "
        f"{sizes[1]} for validation, {sizes[2]} for testing; {args.epochs} epochs in batches of {BATCH}; seeds "
        f"{', '.join(map(str, args.seeds))}. {os.cpu_count()} CPUs, 1 thread, {packages}; read and described in "
        f"{time.monotonic() - start:.0f} s.\n\nMean absolute errors on the test molecules after the last epoch, mean ± "
        "95 % interval over seeds. The gain is Δm over the baseline of the same seed, + is better: the published "
        "tables print it with the other sign.\n",
        flush=True,
    )
    folder = args.folder / f"{args.molecules or 'all'} molecules, {args.epochs} epochs"
    options = {
        "max_epochs": args.epochs,
        "check_val_every_n_epoch": args.epochs,
        "num_sanity_val_steps": 0,
        "accelerator": "cpu",
    }
    shared = {"seeds": args.seeds, "trainer": options, "setup": {"lr": LEARNING_RATE, "batch": BATCH}}
    train, val, test = (part.loader(BATCH, shuffle=place == 0) for place, part in enumerate(data[:3]))

    net = partial(Net, std=data.std)
    show(compare(net, (train, test), WEIGHTINGS, folder / "tasks", alone=["uncertainty"], **shared), named)

    print(
        f"# {', '.join(SUBSET)} alone, with fixed weights by search\n\nThe search goes by the validation molecules, "
        f"and its errors are theirs; 1/{PARTS} is its step, and {SEARCH_SEED} its seed.\n",
        flush=True,
    )
    few = partial(Net, std=data.std, tasks=SUBSET)
    storage = f"sqlite:///{folder / 'search.db'}"
    search = search_weights(few, (train, val), parts=PARTS, seed=SEARCH_SEED, trainer=options, storage=storage)
    print(f"{search}\n", flush=True)
    chosen = {"equal": FixedWeighting, "uncertainty": UncertaintyWeighting, "searched": search.weighting}
    show(compare(few, (train, test), chosen, folder / "subset", baseline="equal", **shared), named)


if __name__ == "__main__":
    main()
