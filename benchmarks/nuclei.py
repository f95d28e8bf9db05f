"""Instances of real pictures by the network for scenes: AP50 of nuclei, by each way of counting votes.

    python benchmarks/nuclei.py nuclei.npz

The file has, for "train" and "test", `image_train` `[N, H, W, 3]` of uint8 and `instance_train` `[N, H, W]`, ids with 0
where there is no nucleus: tiles of the Data Science Bowl 2018 (CC0), say. Two tasks under uncertainty weighting,
nucleus or not and the way to the centroid; votes are taken within what the network says is a nucleus.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import versions
from pytorch_lightning import Trainer, seed_everything
from torch.utils.data import DataLoader
from torchmetrics import JaccardIndex, MeanAbsoluteError

from lightning_uncertainty import MultiTaskModule, Task
from lightning_uncertainty.examples.scenes import SceneNet, Scenes
from lightning_uncertainty.instances import instances_from_votes
from lightning_uncertainty.metrics import InstanceAP

SHOWN = 64  # tiles whose offsets say how long one is
WAYS: dict[str, dict[str, Any]] = {
    "`peaks`": {},
    "`peaks`, `sigma=1, radius=3`": {"sigma": 1.0, "radius": 3},
    "`hdbscan`, `stride=2`": {"method": "hdbscan", "stride": 2},
    "`dbscan`, `stride=2`": {"method": "dbscan", "stride": 2},
}


def tiles(file: Mapping[str, Any], split: str) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Return the pictures of a split, as `Scenes` takes them."""
    images, ids = file[f"image_{split}"], file[f"instance_{split}"]
    if images.ndim == 4 and images.shape[1] == 3:
        images = images.transpose(0, 2, 3, 1)
    return [
        {"image": image, "semantics": (own > 0).astype(np.uint8), "ids": own}
        for image, own in zip(images, ids, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*(does not have many workers|LeafSpec)")
    torch.set_num_threads(1)
    seed_everything(given.seed, verbose=False)
    file = np.load(given.file)
    train, test = Scenes(tiles(file, "train"), training=True), Scenes(tiles(file, "test"))
    offsets = torch.cat([test[index]["instances"].flatten() for index in range(min(SHOWN, len(test)))])
    module = MultiTaskModule(
        SceneNet(2, {"instances": (0.0, offsets[~offsets.isnan()].std().item())}),
        {
            "semantics": Task("categorical", metrics={"mIoU": JaccardIndex("multiclass", num_classes=2)}),
            "instances": Task("laplace", metrics={"MAE": MeanAbsoluteError()}),
        },
        inputs="image",
        optimizer=partial(torch.optim.AdamW, lr=3e-3, weight_decay=1e-4),
        lr_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=given.epochs),
    )
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=given.epochs, accelerator="cpu", limit_val_batches=0, **options)
    trainer.fit(module, DataLoader(train, 8, shuffle=True, drop_last=True))
    results = trainer.test(module, DataLoader(test, 8), verbose=False)[0]

    found = {way: InstanceAP() for way in WAYS}
    seconds = dict.fromkeys(WAYS, 0.0)
    for batch in DataLoader(test, 8):
        predictions = module.predict_tasks(batch["image"])
        classes = predictions["semantics"].mean.argmax(1)
        for way, chosen in WAYS.items():
            begun = time.perf_counter()
            ids = instances_from_votes(predictions["instances"].mean, classes == 1, **chosen)
            seconds[way] += time.perf_counter() - begun
            found[way].update(ids, classes, batch["ids"], batch["semantics"])
    packages = versions(("torch", "pytorch-lightning"))
    print(
        f"{len(train)} tiles for training, {len(test)} for testing, {given.epochs} epochs in batches of 8, seed "
        f"{given.seed}; 1 thread, {packages}. mIoU {100 * results['test/semantics/mIoU']:.1f} %, offsets "
        f"{results['test/instances/MAE']:.3f} px.\n\n| way | AP50 | ms / tile |\n|---|---:|---:|"
    )
    for way, metric in found.items():
        print(f"| {way} | {100 * metric.compute().item():.1f} | {1000 * seconds[way] / len(test):.1f} |")


if __name__ == "__main__":
    main()
