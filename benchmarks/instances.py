"""What each way from votes to instances finds, and how long it takes: AP50 of true offsets with noise.

python benchmarks/instances.py            # ellipses that hide one another
python benchmarks/instances.py ids.npy    # your own ids [N, H, W]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_uncertainty.instances import centroid_offsets, instances_from_votes
from lightning_uncertainty.metrics import InstanceAP

WAYS: dict[str, dict[str, Any]] = {
    "`peaks`": {},
    "`peaks`, batches of 8": {},
    "`peaks`, `sigma=1, radius=3`": {"sigma": 1.0, "radius": 3},
    "`mean_shift`, `stride=3`": {"method": "mean_shift", "stride": 3},
    "`hdbscan`, `stride=2`": {"method": "hdbscan", "stride": 2},
    "`dbscan`, `stride=2`": {"method": "dbscan", "stride": 2},
    "`optics`, `stride=3`": {"method": "optics", "stride": 3},
}
NOISES = (1.0, 2.0, 3.0)


def ellipses(count: int) -> Tensor:
    """Return ids `[count, 128, 256]` of forty ellipses an image, of 3 to 12 pixels."""
    rng = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(256.0), indexing="ij")
    ids = torch.zeros(count, 128, 256, dtype=torch.int64)
    for own in ids:
        for one in range(1, 41):
            row, column, high, wide = torch.rand(4, generator=rng).tolist()
            away = ((rows - 128 * row) / (3 + 9 * high)).square() + ((columns - 256 * column) / (3 + 9 * wide)).square()
            own[away < 1] = one
    return ids


def voted(ids: Tensor, noise: float) -> Tensor:
    """Return true offsets with noise of a standard deviation in pixels, half of its variance alike in 5 by 5 pixels."""
    rng = torch.Generator().manual_seed(1)
    offsets = centroid_offsets(ids)
    white, wide = (torch.randn(offsets.shape, generator=rng) for _ in range(2))
    smooth = 5 * F.avg_pool2d(wide, 5, 1, 2)
    return offsets + noise * (white + smooth) / 2**0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="?", type=Path, help="a .npy file of ids [N, H, W]")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    ids = ellipses(given.images) if given.ids is None else torch.from_numpy(np.load(given.ids).astype(np.int64))
    ids = ids[: given.images]
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for noise in NOISES:
        offsets = voted(ids, noise)
        for name, options in WAYS.items():
            metric = InstanceAP(min_area=16)
            metric.update(instances_from_votes(offsets, **options), ids.sign(), ids, ids.sign())
            found[name].append(100 * metric.compute().item())
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(given.rounds):  # of all in turn, as other work on the machine comes and goes
        for name, options in WAYS.items():
            start = time.perf_counter()
            for part in offsets.split(8 if "batches" in name else 1):
                instances_from_votes(part, **options)
            times[name].append(1e3 * (time.perf_counter() - start) / len(ids))
    print(f"{len(ids)} images of {ids.shape[1]} x {ids.shape[2]}, one thread")
    print("| way | " + " | ".join(f"AP50, noise {noise:g} px" for noise in NOISES) + " | ms an image |")
    print("|---|" + "---|" * (len(NOISES) + 1))
    for name in WAYS:
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in found[name]) + f" | {median(times[name]):.3g} |")


if __name__ == "__main__":
    main()
