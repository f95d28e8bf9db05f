"""Draws the three uncertainties of scenes, by a network that has never seen a truck, and prints how true they are.

    python docs/uncertain_scenes.py [FOLDER]

It trains for some minutes, and writes `scenes_uncertainty.png` and `scenes_coverage.png` into the folder, `docs/images`
where none is given.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pytorch_lightning import Trainer, seed_everything
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from lightning_uncertainty._show import load_pyplot
from lightning_uncertainty.calibration import assess
from lightning_uncertainty.examples._scene_pictures import colours_of
from lightning_uncertainty.examples.scenes import SceneData, SceneModule, Scenes

UNSEEN = "truck"
EPOCHS, SAMPLES = 30, 20
SHOWN = 3


def without(scenes: Scenes, label: int, there: bool = False) -> Subset[dict[str, Tensor]]:
    """Return the scenes that have no pixel of a class, or those that have at least one in a hundred."""
    shares = [(scenes.raw[index]["semantics"] == label).mean() for index in range(len(scenes))]
    return Subset(scenes, [index for index, share in enumerate(shares) if (share > 0.01 if there else share == 0)])


def train(data: SceneData, label: int) -> SceneModule:
    """Return a network that has seen no street with this class."""
    seed_everything(0, verbose=False)
    seen = without(data.scenes("train"), label)
    module = SceneModule(
        data.classes,
        data.scales(),
        things=data.things,
        heteroscedastic=["disparity"],
        dropout=0.2,
        epochs=EPOCHS,
    )
    trainer = Trainer(
        max_epochs=EPOCHS, logger=False, enable_checkpointing=False, enable_model_summary=False, limit_val_batches=0
    )
    trainer.fit(module, DataLoader(seen, data.batch_size, shuffle=True, drop_last=True))
    print(f"trained on {len(seen)} streets without a {UNSEEN}, {EPOCHS} epochs")
    return module.eval()


def at_edges(classes: Tensor) -> Tensor:
    """Return where a pixel `[B, H, W]` has another class within two pixels."""
    one_hot = F.one_hot(classes).movedim(-1, 1).float()
    return F.max_pool2d(one_hot, 5, 1, 2).sum(1) > 1


def say(module: SceneModule, known: DataLoader[Any], unknown: DataLoader[Any], label: int) -> None:
    """Print where the uncertainties are, on streets without the class and on others."""
    found: dict[str, list[Tensor]] = {}
    for batch in known:
        disparity = module.predict_tasks(batch["image"], samples=SAMPLES, seed=0)["disparity"]
        relative, edges = (disparity.aleatoric / batch["disparity"])[:, 0], at_edges(batch["semantics"])
        there, far = ~relative.isnan(), batch["disparity"][:, 0] < batch["disparity"].nanmedian()
        for name, where in {"edges": edges, "elsewhere": ~edges, "far": far, "near": ~far}.items():
            found.setdefault(f"aleatoric σ of the disparity, {name} [%]", []).append(100 * relative[where & there])
    for batch in unknown:
        made = module.predict_tasks(batch["image"], samples=SAMPLES, seed=0)
        inside, there = batch["semantics"] == label, ~batch["disparity"][:, 0].isnan()
        information, spread = made["semantics"].epistemic, (made["disparity"].epistemic / batch["disparity"])[:, 0]
        for name, where in {f"on a {UNSEEN}": inside, "elsewhere": ~inside}.items():
            found.setdefault(f"mutual information of the class, {name} [nats]", []).append(information[where])
            found.setdefault(f"epistemic σ of the disparity, {name} [%]", []).append(100 * spread[where & there])
    for name, parts in found.items():
        values = torch.cat(parts)
        print(f"{name}: median {values.median():.3g}, mean {values.mean():.3g}")


def draw(module: SceneModule, data: SceneData, batch: dict[str, Tensor], path: Path) -> None:
    """Draw images, predictions and uncertainties."""
    made = module.predict_tasks(batch["image"], samples=SAMPLES, seed=0)
    colours = torch.as_tensor(colours_of(data.classes)) / 255
    disparity = made["disparity"]
    mean = torch.where(batch["disparity"].isnan(), torch.nan, disparity.mean)  # the sky has none
    pyplot = load_pyplot()
    columns: list[tuple[str, Any, str | None]] = [
        ("a street", batch["image"].movedim(1, -1), None),
        ("class", colours[made["semantics"].mean.argmax(1)], None),
        ("class: epistemic", made["semantics"].epistemic, "magma"),
        ("disparity", mean[:, 0], "viridis"),
        ("its aleatoric σ, relative", (disparity.aleatoric / mean)[:, 0], "magma"),
        ("its epistemic σ, relative", (disparity.epistemic / mean)[:, 0], "magma"),
    ]
    figure, panels = pyplot.subplots(SHOWN, len(columns), figsize=(12, 3.4), layout="constrained")
    for place, (title, values, cmap) in enumerate(columns):
        high = None if cmap is None else values.flatten()[::7].nanquantile(0.98).item()
        for row in range(SHOWN):
            ax = panels[row, place]
            ax.imshow(values[row], cmap=cmap, vmin=None if cmap is None else 0, vmax=high)
            ax.set(xticks=[], yticks=[], facecolor="0.85")
        panels[0, place].set_title(title, fontsize=9)
    save(figure, path, dpi=110)


def save(figure: Any, path: Path, dpi: int) -> None:
    """Write a figure with few colours, so that it is light."""
    figure.savefig(path, dpi=dpi)
    load_pyplot().close(figure)
    with Image.open(path) as drawn:
        few = drawn.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def main(folder: Path) -> None:
    """Train, print, draw."""
    warnings.filterwarnings("ignore", message=".*(LeafSpec|does not have many workers|val_dataloader)")
    data = SceneData(size=(96, 192))
    label = data.classes.index(UNSEEN)
    module = train(data, label)
    tests = data.scenes("test")
    known = DataLoader(without(tests, label), 8)
    unknown = DataLoader(without(tests, label, there=True), 8)
    calibration = assess(module, known, inputs="image", samples=SAMPLES, seed=0)
    print(calibration, "\n")
    say(module, known, unknown, label)
    draw(module, data, next(iter(unknown)), folder / "scenes_uncertainty.png")
    save(calibration.plot(), folder / "scenes_coverage.png", dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
