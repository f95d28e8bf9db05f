"""What adoption adds to a Lightning step, by the kind of its parts, beside the same step written by hand."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from _measure import begin, differences, estimate, interleave, judge, ratios, table
from lightning_step import RESNET_STEPS, Plain, Stopwatch, fit, resnet18
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_uncertainty import AnalyticUncertaintyWeighting, MultiTaskMixin, adopt

TASKS = ("depth", "normals", "albedo")
STEPS = 100  # timed in a fit, after the first two logging steps of 50
BOUNDS = {"log": 1.08, "call": 1.08, "weight": 1.15, "function": 1.20}  # of the step written by hand
BY_HAND, HOST, FOLLOWED, RESNET = "by hand", "the host alone", "log, follow=True", "ResNet-18"


class Host(LightningModule):
    """Three losses, each by a loss module, each logged, each with a weight of its own."""

    def __init__(self, layers: int = 6, width: int = 96) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())))
        self.heads = nn.ModuleDict({name: nn.Linear(width, 1) for name in TASKS})
        self.criteria = nn.ModuleDict({name: nn.MSELoss() for name in TASKS})
        self.strength = dict.fromkeys(TASKS, 0.5)

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, target = batch
        features = self.trunk(x)
        losses = {name: self.criteria[name](head(features), target) for name, head in self.heads.items()}
        self.log_dict({f"{name}_loss": loss for name, loss in losses.items()})
        return losses

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        return sum(self.strength[name] * loss for name, loss in self.losses(batch).items())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class ByHand(MultiTaskMixin, Host):
    """The same, with a step that weighs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_tasks(dict.fromkeys(TASKS, "gaussian"), weighting=AnalyticUncertaintyWeighting())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.weigh(self.losses(batch))


PARTS = {
    "log": {name: f"log:{name}_loss" for name in TASKS},
    "call": {name: f"call:criteria.{name}" for name in TASKS},
    "weight": {name: f"weight:strength['{name}']" for name in TASKS},
    "function": {name: f"function:{F.__name__}.mse_loss@{at}" for at, name in enumerate(TASKS)},
    FOLLOWED: {name: f"log:{name}_loss" for name in TASKS},
}


def module_of(variant: str) -> LightningModule:
    if variant == HOST:
        return Host()
    if variant == BY_HAND:
        return ByHand()
    adopted: LightningModule = adopt(
        Host(), dict.fromkeys(TASKS, "gaussian"), PARTS[variant], follow=variant == FOLLOWED
    )
    return adopted


def main() -> None:
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    seconds = begin("Adopted modules", __doc__, 300.0, ["torch", "pytorch-lightning"])
    batches = [(torch.randn(64, 96), torch.randn(64, 1)) for _ in range(10)]
    data = DataLoader(batches * (2 * STEPS // 10), batch_size=None)
    images = DataLoader([(torch.randn(16, 3, 64, 64), torch.randn(16, 1))] * (1 + RESNET_STEPS), batch_size=None)

    def sample(variant: str) -> float:
        if variant == RESNET:
            return fit(Plain(resnet18(), 512), DummyLogger(), images, Stopwatch(1, RESNET_STEPS))
        return fit(module_of(variant), DummyLogger(), data, Stopwatch(STEPS, STEPS))

    variants = [HOST, BY_HAND, *PARTS]
    for variant in variants:  # to warm up
        sample(variant)
    samples = interleave(
        {variant: (lambda variant=variant: sample(variant)) for variant in (*variants, RESNET)}, seconds
    )

    rows = []
    for variant in variants:
        row = [variant, estimate(samples[variant]).text()]
        if variant != BY_HAND:
            share = estimate(ratios(samples[variant], samples[BY_HAND]))
            added = differences(samples[variant], samples[BY_HAND])
            percent = estimate(100 * part for part in ratios(added, samples[RESNET]))
            row += [estimate(added).text(), share.text(3), percent.text(2)]
        bound = BOUNDS.get(variant)
        if bound is not None:
            row.append(f"at most {bound}: {judge(share, at_most=bound)}")
        rows.append(row + [""] * (6 - len(row)))
    print(
        f"{len(TASKS)} tasks, {len(samples[HOST])} rounds; `log_every_n_steps=50`, on which the total is checked. The "
        f"last share is of a ResNet-18 step with {len(TASKS)} heads, 16 images of 3x64x64: "
        f"{estimate(samples[RESNET]).text()} µs in the same rounds.\n"
    )
    table(["", "µs / step", "µs more than by hand", "/ by hand", "% of ResNet-18", "claim"], rows)


if __name__ == "__main__":
    main()
