"""A step of the network for scenes, which is in channels_last: what weighting adds to a plain sum, and bf16 saves.

A step of each in turn, without a Trainer, whose own part is the same in all; what it and callbacks add stands in
`lightning_step.py`.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from _measure import begin, differences, estimate, interleave, judge, ratios, table
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.nn import functional as F

from lightning_uncertainty.examples.scenes import SceneData, SceneModule, SceneNet
from lightning_uncertainty.weightings import AnalyticUncertaintyWeighting, UncertaintyWeighting

SIZE, BATCH = (128, 256), 8  # as the example has them
BOUND = 1.01  # of the step with a plain sum
PLAIN, LEARNT = "plain sum", "uncertainty"
SCALES = {"instances": (0.0, 8.0), "disparity": (9.0, 10.0)}


class PlainSum(LightningModule):
    """The same network and losses, written by hand."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = SceneNet(classes, SCALES)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        outputs = self.net(batch["image"])
        total = F.cross_entropy(outputs["semantics"], batch["semantics"], ignore_index=255)
        for task in SCALES:
            error = (outputs[task] - batch[task]).abs()
            total = total + error[~batch[task].isnan()].mean()
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=1e-4)


def main() -> None:
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    seconds = begin("A step of SceneNet", __doc__, 300.0, ["torch", "pytorch-lightning"])
    with tempfile.TemporaryDirectory() as root:
        scenes = SceneData(root, size=SIZE, batch_size=BATCH, streets=(4 * BATCH, 1, 1))
        batches = list(scenes.train_dataloader())

    def step_of(variant: str) -> Callable[[], float]:
        torch.manual_seed(0)
        module: LightningModule
        if variant == PLAIN:
            module = PlainSum(len(scenes.classes))
            optimizer = module.configure_optimizers()
        else:
            weighting = AnalyticUncertaintyWeighting() if variant.startswith("analytic") else UncertaintyWeighting()
            module = SceneModule(scenes.classes, SCALES, weighting)
            optimizer = module.configure_optimizers()["optimizer"]
        if "contiguous" in variant:
            module = module.to(memory_format=torch.contiguous_format)
        order = cycle(batches)

        def step() -> float:
            batch = next(order)
            begun = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in variant):
                loss: Any = module.training_step(batch, 0)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return 1e6 * (time.process_time() - begun)

        return step

    variants = [PLAIN, LEARNT, "analytic uncertainty", f"{LEARNT}, contiguous", f"{LEARNT}, bf16-mixed"]
    steps = {variant: step_of(variant) for variant in variants}
    for step in steps.values():
        step()  # to warm up
    samples = interleave(steps, seconds)
    rows = []
    for variant in variants:
        row = [variant, estimate(samples[variant]).text(), "", "", ""]
        if variant != PLAIN:
            share = estimate(ratios(samples[variant], samples[PLAIN]))
            row[2:4] = [estimate(differences(samples[variant], samples[PLAIN])).text(), share.text(3)]
            if variant in (LEARNT, "analytic uncertainty"):
                row[4] = f"at most {BOUND}: {judge(share, at_most=BOUND)}"
        rows.append(row)
    print(f"Three tasks, batches of {BATCH} images of {SIZE[0]} x {SIZE[1]}, {len(samples[PLAIN])} rounds.\n")
    table(["", "us / step", "us more than the sum", "/ plain sum", "claim"], rows)


if __name__ == "__main__":
    main()
