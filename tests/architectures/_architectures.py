"""One list of all architectures, small, on one backbone, and dense data that they can learn by heart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_uncertainty import MultiTaskMixin, Task, deep_supervision
from lightning_uncertainty.architectures import (  # fmt: skip
    JTRL,
    MTAN,
    NDDR,
    Architecture,
    BranchingArchitecture,
    CrossStitch,
    HardSharing,
    PADNet,
    PAPNet,
)

CHANNELS = [8, 12, 16]
OUTPUTS = {"depth": 1, "semantics": 3, "motion": 2}
KINDS = {"depth": "gaussian", "semantics": "categorical", "motion": "laplace"}
TWO, THREE = ("depth", "semantics"), ("depth", "semantics", "motion")
SIZE = (24, 32)


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def stages(channels=CHANNELS) -> list[nn.Sequential]:
    """Stages of two blocks each, of which the first halves the image."""
    pairs = zip([3, *channels], channels, strict=False)
    return [nn.Sequential(block(i, o, stride=2), block(o, o)) for i, o in pairs]


class Pyramid(nn.Module):
    """A backbone that is no sequence: it returns the features of all stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages())

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def one_feature() -> nn.Module:
    """A backbone that returns one feature of 8 channels."""
    return nn.Conv2d(3, 8, 3, stride=4)


def heads(tasks, channels: int = CHANNELS[-1]) -> dict[str, nn.Module]:
    return {task: nn.Sequential(block(channels, 16), nn.Conv2d(16, OUTPUTS[task], 1)) for task in tasks}


def outputs(tasks) -> dict[str, int]:
    return {task: OUTPUTS[task] for task in tasks}


class Entry(NamedTuple):
    """How to make an architecture for tasks, for how many at most, and whether it takes features in place of images."""

    make: Callable[..., Architecture]
    most: int = 3
    takes_features: bool = True


ARCHITECTURES = {
    "HardSharing": Entry(lambda tasks: HardSharing(stages(), heads(tasks))),
    "CrossStitch": Entry(lambda tasks: CrossStitch(stages(), heads(tasks), CHANNELS), takes_features=False),
    "NDDR": Entry(lambda tasks: NDDR(stages(), heads(tasks), CHANNELS), takes_features=False),
    "NDDR, shortcut": Entry(lambda tasks: NDDR(stages(), heads(tasks), CHANNELS, shortcut=True), takes_features=False),
    "MTAN": Entry(lambda tasks: MTAN(stages(), heads(tasks), [(c, c) for c in CHANNELS])),
    "PADNet": Entry(lambda tasks: PADNet(Pyramid(), CHANNELS[-1], outputs(tasks), width=16)),
    "PAPNet": Entry(lambda tasks: PAPNet(stages(), CHANNELS[-1], outputs(tasks), width=16)),
    "JTRL": Entry(lambda tasks: JTRL(stages(), CHANNELS, outputs(tasks), width=16), most=2),
}
CELLS = [(name, tasks) for name, entry in ARCHITECTURES.items() for tasks in (TWO, THREE) if len(tasks) <= entry.most]
BRANCHING = [name for name, entry in ARCHITECTURES.items() if isinstance(entry.make(TWO), BranchingArchitecture)]


def make(name: str, tasks=TWO, seed: int = 0) -> Architecture:
    torch.manual_seed(seed)
    return ARCHITECTURES[name].make(tasks)


def gradients_of(output: torch.Tensor, net: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients of an output, by name of the parameters on which it depends."""
    names, parameters = zip(*net.named_parameters(), strict=True)
    found = torch.autograd.grad(output.square().sum(), parameters, allow_unused=True, retain_graph=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


def check_shared(outputs: Iterable[torch.Tensor], net: Architecture) -> set[str]:
    """Return the names of the parameters on which several of these outputs depend: those that are shared, each once."""
    counts = Counter(name for output in outputs for name in gradients_of(output, net))
    several = {name for name, count in counts.items() if count > 1}
    names = {parameter: name for name, parameter in net.named_parameters()}
    assert sorted(names[parameter] for parameter in net.shared_parameters()) == sorted(several)
    return several


def batch_of(seed: int = 0, rows: int = 8) -> dict[str, torch.Tensor]:
    """Images, and labels that are smooth, so that bilinear predictions can follow them."""
    rng = torch.Generator().manual_seed(seed)

    def smooth(channels: int) -> torch.Tensor:
        coarse = torch.randn(rows, channels, SIZE[0] // 8, SIZE[1] // 8, generator=rng)
        return F.interpolate(coarse, size=SIZE, mode="bilinear")

    labels = {"depth": 3 + 2 * smooth(1), "semantics": smooth(3).argmax(1), "motion": smooth(2)}
    return {"image": torch.randn(rows, 3, *SIZE, generator=rng), **labels}


class Scenes(MultiTaskMixin, LightningModule):
    """A module around an architecture, one row of `batches` a step for each rank."""

    def __init__(self, net: Architecture, tasks, weighting=None, batches=None, lr: float = 1e-2) -> None:
        super().__init__()
        self.net, self.lr = net, lr
        self.register_tasks(
            deep_supervision({task: Task(KINDS[task]) for task in tasks}, net.predictions), weighting=weighting
        )
        self.batches = [batch_of()] if batches is None else batches

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    def training_step(self, batch, batch_idx):
        return self.task_step(self.net(batch["image"]), batch, "train")

    def shared_parameters(self):
        return self.net.shared_parameters()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameter_groups(lr=self.lr))
