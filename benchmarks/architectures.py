"""What each architecture costs beside hard sharing: parameters, operations, time and memory, on one backbone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from _measure import Estimate, begin, estimate, grown_memory, interleave, ratios, table
from lightning_step import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lightning_uncertainty.architectures import (
    JTRL,
    MTAN,
    NDDR,
    Architecture,
    Bottleneck,
    CrossStitch,
    HardSharing,
    PADNet,
    PAPNet,
)

SHAPE = (4, 3, 96, 128)
CHANNELS = [32, 64, 128, 256]
WIDTH = 256
OUTPUTS = {"depth": 1, "semantics": 13, "normals": 3}
TASKS = (2, 3)
MANY = (2, 3, 5, 8)
BASE, RECURSIVE = "`HardSharing`", "`JTRL`"
FORWARD, STEP = "forward", "step"

Outputs = Mapping[str, int]
Make = Callable[[Outputs], Architecture]


def stages() -> list[nn.Sequential]:
    """Return ResNet-18 at half its width, without its first pooling: features of strides 2, 4, 8 and 16."""
    stem = [nn.Conv2d(3, CHANNELS[0], 7, 2, 3, bias=False), nn.BatchNorm2d(CHANNELS[0]), nn.ReLU()]
    first = nn.Sequential(*stem, Block(CHANNELS[0], CHANNELS[0], 1), Block(CHANNELS[0], CHANNELS[0], 1))
    return [first, *(nn.Sequential(Block(i, o, 2), Block(o, o, 1)) for i, o in pairwise(CHANNELS))]


def heads(outputs: Outputs) -> dict[str, nn.Module]:
    """Return heads as those which PAD-Net and PAP-Net come with."""
    return {task: head(count) for task, count in outputs.items()}


def head(outputs: int) -> nn.Sequential:
    width = CHANNELS[-1]
    convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, outputs, 1))


def mtan(outputs: Outputs) -> Architecture:
    return MTAN(stages(), heads(outputs), [(width, width) for width in CHANNELS], block=Bottleneck)


ARCHITECTURES: dict[str, Make] = {
    BASE: lambda outputs: HardSharing(stages(), heads(outputs)),
    "`CrossStitch`": lambda outputs: CrossStitch(stages(), heads(outputs), CHANNELS),
    "`NDDR`": lambda outputs: NDDR(stages(), heads(outputs), CHANNELS),
    "`NDDR(shortcut=True)`": lambda outputs: NDDR(stages(), heads(outputs), CHANNELS, shortcut=True),
    "`MTAN(block=Bottleneck)`": mtan,
    "`PADNet`": lambda outputs: PADNet(stages(), CHANNELS[-1], outputs, width=WIDTH),
    "`PAPNet`": lambda outputs: PAPNet(stages(), CHANNELS[-1], outputs, width=WIDTH),
    RECURSIVE: lambda outputs: JTRL(stages(), CHANNELS, outputs, width=WIDTH),
}
SETTINGS = [(name, tasks) for tasks in TASKS for name in ARCHITECTURES if name != RECURSIVE or tasks == 2]


class Problem:
    """An architecture, and one batch with labels for all of its predictions."""

    def __init__(self, name: str, tasks: int) -> None:
        torch.manual_seed(0)
        outputs = dict(list(OUTPUTS.items())[:tasks])
        self.net = ARCHITECTURES[name](outputs)
        self.images = torch.randn(SHAPE)
        batch, _, *size = SHAPE
        self.labels = {task: torch.randn(batch, count, *size) for task, count in outputs.items()}
        self.labels["semantics"] = torch.randint(outputs["semantics"], (batch, *size))

    def forward(self) -> None:
        self.net.eval()
        with torch.no_grad():
            self.net(self.images)

    def step(self) -> None:
        self.net.train()
        self.net.zero_grad()
        predictions = self.net(self.images)
        torch.stack([self.loss(name, prediction) for name, prediction in predictions.items()]).sum().backward()

    def loss(self, name: str, prediction: Tensor) -> Tensor:
        label = self.labels[self.net.predictions[name]]
        return F.l1_loss(prediction, label) if label.is_floating_point() else F.cross_entropy(prediction, label)

    def parameters(self) -> float:
        """Return their number in millions."""
        return sum(parameter.numel() for parameter in self.net.parameters()) / 1e6

    def operations(self) -> float:
        """Return the billions that one image takes, of convolutions and matrix products; a multiply-add is two."""
        with FlopCounterMode(display=False) as counter:
            self.forward()
        return counter.get_total_flops() / len(self.images) / 1e9


# -- time --------------------------------------------------------------------------------------------------------------


def milliseconds(run: Callable[[], object]) -> Callable[[], float]:
    def sample() -> float:
        start = time.process_time()
        run()
        return 1e3 * (time.process_time() - start)

    sample()  # to warm up
    return sample


def times(problems: Mapping[tuple[str, int], Problem], seconds: float) -> dict[tuple[str, int, str], list[float]]:
    """Return milliseconds by architecture, number of tasks and what is measured, round by round."""
    samplers: dict[tuple[str, int, str], Callable[[], float]] = {}
    for (name, tasks), problem in problems.items():
        samplers[name, tasks, FORWARD] = milliseconds(problem.forward)
        samplers[name, tasks, STEP] = milliseconds(problem.step)
    return interleave(samplers, seconds)


# -- memory ------------------------------------------------------------------------------------------------------------


def peak(name: str, tasks: int) -> float:
    """Return by how many MiB a forward and backward lets a process of its own grow, over model and batch."""

    def prepare() -> Callable[[], object]:
        problem = Problem(name, tasks)
        problem.step()  # what is made once
        problem.net.zero_grad()
        return problem.step

    return grown_memory(prepare)


# -- report ------------------------------------------------------------------------------------------------------------


def main() -> None:
    seconds = begin("Architectures", __doc__, 300.0, ["torch"])
    peaks = {setting: peak(*setting) for setting in SETTINGS}  # forks, first of all
    problems = {setting: Problem(*setting) for setting in SETTINGS}
    samples = times(problems, seconds)
    batch, _, *size = SHAPE
    print(
        f"Images of {size[0]} x {size[1]} pixels, {batch} in a batch. The backbone is ResNet-18 at half its width; its "
        f"last features have {CHANNELS[-1]} channels at a sixteenth of the images' size. Every head is a 3x3 "
        "convolution with BatchNorm and ReLU, then a 1x1 convolution; JTRL's is the latter alone. Tasks of PAD-Net, "
        f"PAP-Net and JTRL have features of width {WIDTH}, the default; final heads of PAP-Net take half of it, and "
        f"those of hard sharing {CHANNELS[-1]} channels. GFLOPs: of a forward pass for one image, in "
        "convolutions and matrix products, a multiply-add counted as two. Step: forward, losses of all "
        "predictions, backward. Memory: how far the resident memory of a process grows in such a step over model and "
        f"batch. Ratios are to hard sharing with as many tasks, {len(samples[BASE, TASKS[0], STEP])} rounds.\n"
    )
    for tasks in TASKS:
        base = [estimate(samples[BASE, tasks, what]).median for what in (FORWARD, STEP)]
        print(
            f"T = {tasks}: {', '.join(list(OUTPUTS)[:tasks])}. Hard sharing takes {base[0]:,.0f} ms for a forward "
            f"pass, a step {base[1]:,.0f} ms and {peaks[BASE, tasks]:,.0f} MiB.\n"
        )
        header = ["", "parameters, M", "GFLOPs", "forward", "step", "memory"]
        table(header, [row(name, tasks, problems, samples, peaks) for name, n in SETTINGS if n == tasks])
    print("Parameters in millions by the number of tasks, of one channel each.\n")
    table(["", *(f"T = {tasks}" for tasks in MANY)], [parameters(name) for name in ARCHITECTURES if name != RECURSIVE])


def parameters(name: str) -> list[str]:
    nets = [ARCHITECTURES[name]({f"task_{task}": 1 for task in range(tasks)}) for tasks in MANY]
    return [name, *(f"{sum(weight.numel() for weight in net.parameters()) / 1e6:.1f}" for net in nets)]


def row(
    name: str,
    tasks: int,
    problems: Mapping[tuple[str, int], Problem],
    samples: Mapping[tuple[str, int, str], Sequence[float]],
    peaks: Mapping[tuple[str, int], float],
) -> list[str]:
    def beside(what: str) -> Estimate:
        return estimate(ratios(samples[name, tasks, what], samples[BASE, tasks, what]))

    problem = problems[name, tasks]
    counts = [f"{problem.parameters():.1f}", f"{problem.operations():.2f}"]
    memory = f"{peaks[name, tasks] / peaks[BASE, tasks]:.2f}"
    return [name, *counts, beside(FORWARD).text(2), beside(STEP).text(2), memory]


if __name__ == "__main__":
    main()
