"""How well each architecture learns classes and disparity of random streets, beside each task alone.

    python benchmarks/architectures_on_streets.py

Small networks, few streets and a short fit, over three seeds: an order of magnitude, no verdict. A quarter of an hour.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from statistics import mean, stdev

import torch
from _measure import begin, table
from torch import Tensor, nn
from torchmetrics import JaccardIndex

from lightning_uncertainty import MultiTaskModule, Task, deep_supervision
from lightning_uncertainty.architectures import JTRL, MTAN, NDDR, Architecture, CrossStitch, HardSharing, PADNet, PAPNet
from lightning_uncertainty.examples.streets import CLASSES, draw_street

TRAINED, TESTED, SIZE = 128, 64, (64, 128)
EPOCHS, BATCH, LR, SEEDS = 16, 8, 3e-3, (0, 1, 2)
CHANNELS, WIDTH, BASELINE = [16, 32, 64], 64, 62.0  # pixels of disparity at a metre
OUTPUTS = {"semantics": len(CLASSES), "disparity": 1}
TASKS = {"semantics": Task("categorical"), "disparity": Task("laplace")}

Streets = Mapping[str, Tensor]


def streets(seeds: range) -> Streets:
    """Return images, classes and disparities of streets."""
    drawn = [draw_street(seed, *SIZE) for seed in seeds]
    depth = torch.stack([torch.from_numpy(street.depth) for street in drawn])[:, None]
    return {
        "image": torch.stack([torch.from_numpy(street.image) for street in drawn]).permute(0, 3, 1, 2) / 255 - 0.5,
        "semantics": torch.stack([torch.from_numpy(street.label) for street in drawn]).long(),
        "disparity": torch.where(depth > 0, BASELINE / depth.clamp(min=1), 0.0),
    }


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def stages() -> list[nn.Sequential]:
    return [nn.Sequential(block(i, o, 2), block(o, o), block(o, o)) for i, o in pairwise([3, *CHANNELS])]


def heads(outputs: Mapping[str, int]) -> dict[str, nn.Module]:
    last = CHANNELS[-1]
    return {task: nn.Sequential(block(last, last), nn.Conv2d(last, count, 1)) for task, count in outputs.items()}


ALONE = {task: {task: count} for task, count in OUTPUTS.items()}
NETS = {
    **{
        f"{task} alone": lambda outputs=outputs: HardSharing(stages(), heads(outputs))
        for task, outputs in ALONE.items()
    },
    "`HardSharing`": lambda: HardSharing(stages(), heads(OUTPUTS)),
    "`CrossStitch`": lambda: CrossStitch(stages(), heads(OUTPUTS), CHANNELS),
    "`NDDR`": lambda: NDDR(stages(), heads(OUTPUTS), CHANNELS),
    "`MTAN`": lambda: MTAN(stages(), heads(OUTPUTS), CHANNELS),
    "`PADNet`": lambda: PADNet(stages(), CHANNELS[-1], OUTPUTS, width=WIDTH),
    "`PAPNet`": lambda: PAPNet(stages(), CHANNELS[-1], OUTPUTS, width=WIDTH),
    "`JTRL`": lambda: JTRL(stages(), CHANNELS, dict(reversed(OUTPUTS.items())), width=WIDTH),
}


def fitted(net: Architecture, data: Streets, seed: int) -> MultiTaskModule:
    tasks = {task: TASKS[task] for task in net.predictions if task in TASKS}
    module = MultiTaskModule(net, deep_supervision(tasks, net.predictions), inputs="image")
    optimizer = torch.optim.AdamW(module.parameter_groups(lr=LR))
    steps = EPOCHS * (TRAINED // BATCH)
    rates = [group["lr"] for group in optimizer.param_groups]
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
    random = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for rows in torch.randperm(TRAINED, generator=random).split(BATCH):
            flipped = torch.rand((), generator=random) < 0.5
            batch = {key: value[rows].flip(-1) if flipped else value[rows] for key, value in data.items()}
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            optimizer.step()
            scheduler.step()
    return module


@torch.no_grad()
def scores(module: MultiTaskModule, data: Streets) -> dict[str, float]:
    """Return mIoU in percent and the mean absolute error of disparity in pixels."""
    module.eval()
    outputs = [module(images) for images in data["image"].split(BATCH)]
    found = {}
    if "semantics" in outputs[0]:
        classes = torch.cat([output["semantics"].argmax(1) for output in outputs])
        found["semantics"] = (
            100 * JaccardIndex("multiclass", num_classes=len(CLASSES))(classes, data["semantics"]).item()
        )
    if "disparity" in outputs[0]:
        errors = torch.cat([output["disparity"] for output in outputs]) - data["disparity"]
        found["disparity"] = errors.abs().mean().item()
    return found


def main() -> None:
    begin("Architectures on streets", __doc__, 0.0, ["torch"])
    trained, tested = streets(range(TRAINED)), streets(range(10_000, 10_000 + TESTED))
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in NETS}
    seconds = dict.fromkeys(NETS, 0.0)
    for seed in SEEDS:
        for name, make in NETS.items():
            torch.manual_seed(seed)
            start = time.process_time()
            module = fitted(make(), trained, seed)
            seconds[name] += time.process_time() - start
            rows[name].append(scores(module, tested))
    alone = [{task: rows[f"{task} alone"][k][task] for task in OUTPUTS} for k in range(len(SEEDS))]
    print(
        f"{TRAINED} streets of {SIZE[0]} x {SIZE[1]} pixels to learn from, {TESTED} to test on, {EPOCHS} epochs, seeds "
        f"{SEEDS}. Stages have {CHANNELS} channels, tasks' features {WIDTH}. The gain is the mean of both tasks' over "
        "the task alone with the same seed; ± is a standard error over seeds.\n"
    )
    table(
        ["", "mIoU, %", "disparity, px", "gain, %", "CPU s a fit"],
        [line(name, rows[name], alone, seconds[name] / len(SEEDS)) for name in NETS],
    )


def line(name: str, found: list[dict[str, float]], alone: list[dict[str, float]], seconds: float) -> list[str]:
    def text(values: list[float], digits: int) -> str:
        return f"{mean(values):.{digits}f} ± {stdev(values) / len(values) ** 0.5:.{digits}f}"

    columns = [text([row[task] for row in found], 2) if task in found[0] else "" for task in OUTPUTS]
    gains = [
        50 * ((row["semantics"] / own["semantics"] - 1) + (1 - row["disparity"] / own["disparity"]))
        for row, own in zip(found, alone, strict=True)
        if len(row) == 2
    ]
    return [name, *columns, text(gains, 1) if gains else "", f"{seconds:.0f}"]


if __name__ == "__main__":
    main()
