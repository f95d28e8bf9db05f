"""What adoption adds to a Lightning step, by the kind of its parts, beside the same step written by hand."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from _measure import begin, differences, estimate, interleave, judge, ratios, table
from lightning_step import Stopwatch, fit
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_uncertainty import AnalyticUncertaintyWeighting, MultiTaskMixin, adopt

TASKS = ("depth", "normals", "albedo")
STEPS = 100  # timed in a fit, after the first two logging steps of 50
BOUNDS = {"log": 1.08, "call": 1.08, "weight": 1.15, "function": 1.20}  # of the step written by hand
BY_HAND, HOST, FOLLOWED = "by hand", "the host alone", "log, follow=True"


class Host(LightningModule):
    """Three losses, each by a loss module, each logged, each with a weight of its own."""

    def __init__(self, layers: int = 28, width: int = 96) -> None:
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
    seconds = begin("Adopted modules", __doc__, 150.0, ["torch", "pytorch-lightning"])
    batches = [(torch.randn(64, 96), torch.randn(64, 1)) for _ in range(10)]
    data = DataLoader(batches * (2 * STEPS // 10), batch_size=None)

    def sample(variant: str) -> float:
        return fit(module_of(variant), DummyLogger(), data, Stopwatch(STEPS, STEPS))

    variants = [HOST, BY_HAND, *PARTS]
    for variant in variants:  # to warm up
        sample(variant)
    samples = interleave({variant: (lambda variant=variant: sample(variant)) for variant in variants}, seconds)

    rows = []
    for variant in variants:
        share = estimate(ratios(samples[variant], samples[BY_HAND]))
        added = estimate(differences(samples[variant], samples[BY_HAND]))
        bound = BOUNDS.get(variant)
        claim = "" if bound is None else f"at most {bound}: {judge(share, at_most=bound)}"
        own = variant == BY_HAND
        rows.append(
            [
                variant,
                estimate(samples[variant]).text(),
                "" if own else added.text(),
                "" if own else share.text(3),
                claim,
            ]
        )
    print(f"{len(TASKS)} tasks, {len(samples[HOST])} rounds; `log_every_n_steps=50`, on which the total is checked.\n")
    table(["", "us / step", "us more than by hand", "/ by hand", "claim"], rows)


if __name__ == "__main__":
    main()
