"""The paper's experiment in the small: semantics, instances and disparity from one image, under many weightings.

Streets are drawn (`lightning_uncertainty/examples/streets.py`), and the network is `SceneNet`, from scratch; `--root`
and `--layout` take Cityscapes or NYUv2 in their stead. As the paper's Table 1 (Kendall, Gal & Cipolla, CVPR 2018) it
gives the IoU of classes, the error of instance offsets and that of disparity in pixels, and, besides, AP50 of the
instances that votes make within the true classes, so that it is a figure of the offsets alone.

Each weighting, and each single task, is trained at all learning rates with the first seed; the one with the lowest
`val/balanced_loss` (its own loss for a single task) is trained with the other seeds, too, and tested. Any number of
processes may run the same command on one folder; it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _comparison import show
from _measure import versions
from torch import Tensor

from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.examples.scenes import SceneData, SceneModule
from lightning_uncertainty.trials import compare
from lightning_uncertainty.weightings import (
    AnalyticUncertaintyWeighting,
    FixedWeighting,
    UncertaintyWeighting,
    Weighting,
)

TASKS = ("semantics", "instances", "disparity")
GRID = ((0.89, 0.01, 0.1), (0.9, 0.05, 0.05), (0.8, 0.1, 0.1), (0.5, 0.1, 0.4), (0.5, 0.25, 0.25))  # first the paper's
LEARNING_RATES = (1e-3, 3e-3, 6e-3)
SIZE = (96, 192)
MEASURES = {"semantics": ["mIoU"], "instances": ["MAE", "AP50"], "disparity": ["MAE"]}


class LiteralUncertainty(UncertaintyWeighting):
    """Over L1 losses in the Gaussian form, as Eq. 7 of the paper is written."""


def fixed(weights: tuple[float, ...]) -> Callable[[], Weighting]:
    return partial(FixedWeighting, dict(zip(TASKS, weights, strict=True)))


WEIGHTINGS: dict[str, Callable[[], Weighting]] = {
    "equal": FixedWeighting,
    **{f"fixed {' '.join(f'{weight:g}' for weight in weights)}": fixed(weights) for weights in GRID},
    "uncertainty": UncertaintyWeighting,
    "uncertainty, literal": LiteralUncertainty,
    "analytic uncertainty": AnalyticUncertaintyWeighting,
    "MGDA after uncertainty": lambda: GradientBalancing("mgda", UncertaintyWeighting()),
    "PCGrad after uncertainty": lambda: GradientBalancing("pcgrad", UncertaintyWeighting()),
}


class Scenes(SceneModule):
    """Votes within the true classes: AP50 says what the offsets are worth, of a network without classes, too."""

    def on_task_outputs(self, stage: str, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        if stage == "test" and "instances" in outputs:
            classes = batch["semantics"]
            ids = self.instances(outputs["instances"], classes)
            self.instance_ap["test"].update(ids, classes, batch["ids"], classes)


def module(
    weighting: Weighting, lr: float, data: SceneData, scales: dict[str, tuple[float, float]], epochs: int
) -> Any:
    likelihood = "l1_kendall" if isinstance(weighting, LiteralUncertainty) else "laplace"
    options = {"things": data.things, "likelihood": likelihood, "lr": lr, "epochs": epochs, "width": data.size[1]}
    return Scenes(data.classes, scales, weighting, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--root", type=Path, help="folder of the scenes; streets are drawn where there is none")
    add("--layout", default="streets", choices=("streets", "cityscapes", "mtan"))
    add("--size", type=int, nargs=2, default=SIZE, metavar=("H", "W"))
    add("--streets", type=int, nargs=3, default=(800, 100, 200), help="for training, validation and testing")
    add("--batch-size", type=int, default=4)
    add("--epochs", type=int, default=12)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--rates", type=float, nargs="+", default=LEARNING_RATES)
    add("--folder", type=Path, default=Path("runs/scenes-benchmark"))
    given = parser.parse_args()
    for message in (".*does not have many workers", ".*LeafSpec"):
        warnings.filterwarnings("ignore", message=message)
    torch.set_num_threads(1)
    data = SceneData(
        given.root,
        given.layout,
        size=tuple(given.size),
        batch_size=given.batch_size,
        streets=tuple(given.streets),
    )
    data.prepare_data()
    scales = data.scales()
    packages = versions(("torch", "pytorch-lightning"))
    print(
        f"$ {' '.join(['python', 'benchmarks/scenes.py', *sys.argv[1:]])}\n\n# Scenes\n\n{given.layout} of "
        f"{given.size[0]} x {given.size[1]} pixels, {len(data.scenes('train'))} for training, "
        f"{len(data.scenes('val'))} for validation, {len(data.scenes('test'))} for testing; {given.epochs} epochs in "
        f"batches of {given.batch_size}; seeds {', '.join(map(str, given.seeds))}; {os.cpu_count()} CPUs, 1 thread, "
        f"{packages}.\n\nMean ± 95 % interval over seeds, on the test scenes, at the learning rate that does best on "
        "the validation scenes with the first seed.\n",
        flush=True,
    )
    options = {"max_epochs": given.epochs, "check_val_every_n_epoch": given.epochs, "num_sanity_val_steps": 0}
    found = compare(
        partial(module, data=data, scales=scales, epochs=given.epochs),
        data,
        WEIGHTINGS,
        given.folder,
        seeds=given.seeds,
        alone=["uncertainty"],
        settings={"lr": list(given.rates)},
        metrics=MEASURES,
        higher_is_better={"instances": {"AP50": True}},
        trainer={**options, "accelerator": "cpu"},
        setup={"size": list(given.size), "streets": list(given.streets), "batch_size": given.batch_size},
    )
    show(found, lambda measure: f"{measure.task} {measure.metric}")
    fits = [trial for trial in found.trials if trial.step_time is not None]
    print(
        f"{len(fits)} fits are in the table, those of other learning rates are in {given.folder}. This process took "
        f"{time.process_time() / 3600:.2f} CPU-hours."
    )


if __name__ == "__main__":
    main()
