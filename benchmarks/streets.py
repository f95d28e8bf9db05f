"""What colour and position tell of a street's classes, and how long a street takes to draw.

    python benchmarks/streets.py

A perceptron is given the colour of a pixel and where it is, and nothing of what is around: what a network that looks at
scenes must be better than. Both are measured on the 100 test streets of `SceneData`. A minute.
"""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import Tensor, nn
from torchmetrics import JaccardIndex

from lightning_uncertainty.examples.scenes import SceneData, Scenes
from lightning_uncertainty.examples.streets import CLASSES, draw_street

STREETS = 200  # for training
STEPS, PIXELS, LR = 2000, 4096, 1e-2


def pixels(scenes: Scenes, count: int) -> tuple[Tensor, Tensor]:
    """Return colour and place of every pixel, `[N, 5]`, and its class."""
    inputs, labels = [], []
    for index in range(count):
        scene = scenes[index]
        rows, columns = (torch.linspace(-1, 1, length) for length in scene["semantics"].shape)
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        inputs.append(torch.cat([4 * scene["image"] - 2, places]).flatten(1).T)
        labels.append(scene["semantics"].flatten())
    return torch.cat(inputs), torch.cat(labels)


def classifier(inputs: Tensor, labels: Tensor) -> nn.Module:
    """Return a perceptron that is trained on pixels at random."""
    net = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, len(CLASSES)))
    optimizer = torch.optim.Adam(net.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(len(inputs), (PIXELS,))
        loss = nn.functional.cross_entropy(net(inputs[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return net


def main() -> None:
    """Print both."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    times = []
    for seed in range(60):
        start = time.process_time()
        draw_street(seed)
        times.append(time.process_time() - start)
    print(f"a street of 128 x 256 pixels: {1e3 * median(times):.0f} ms of a processor (median of {len(times)})")
    data = SceneData()
    data.prepare_data()
    net = classifier(*pixels(Scenes(data.scenes("train").raw), STREETS))
    inputs, labels = pixels(data.scenes("test"), len(data.scenes("test")))
    iou = JaccardIndex("multiclass", num_classes=len(CLASSES), average="none")
    with torch.no_grad():
        for some, right in zip(inputs.split(1 << 17), labels.split(1 << 17), strict=True):
            iou.update(net(some).argmax(1), right)
    found = 100 * iou.compute()
    print(f"colour and position alone: {found.mean():.1f} % mIoU")
    print(", ".join(f"{name} {value:.0f}" for name, value in zip(CLASSES, found.tolist(), strict=True)))


if __name__ == "__main__":
    main()
