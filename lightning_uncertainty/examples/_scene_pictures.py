"""What a network makes of scenes, as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_uncertainty._show import (
    Column,
    Scale,
    class_colours,
    draw_sheet,
    fitted,
    given_colours,
    instance_colours,
    number_colours,
)
from lightning_uncertainty.examples._scene_folders import read_image
from lightning_uncertainty.examples._scene_samples import instances_within
from lightning_uncertainty.predictions import Prediction

__all__ = ["colours_of", "draw_predictions", "found_instances", "instance_panels", "read_photograph"]

MOST_ELONGATED = 8  # a photograph, brought to a width, of more is thousands of pixels high, or a strip

COLOURS = {  # as Cityscapes has them
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}


def colours_of(classes: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the colours of classes: those of Cityscapes by name, and of others what is told apart."""
    others = class_colours(len(classes)).tolist()
    return [COLOURS.get(name, tuple(other)) for name, other in zip(classes, others, strict=True)]


def found_instances(predictions: Mapping[str, Prediction], things: Sequence[int]) -> Tensor:
    """Return the instances `[B, H, W]` that predicted offsets meet in, of predicted classes that have instances."""
    classes = predictions["semantics"].mean.argmax(1)
    return instances_within(predictions["instances"].mean, classes, things)


def instance_panels(
    predictions: Mapping[str, Prediction], batch: Mapping[str, Tensor], things: Sequence[int]
) -> dict[str, Tensor]:
    """Return the true and the found instances, as `PredictionImages(show=...)` takes them."""
    return {"true instances": batch["ids"], "found instances": found_instances(predictions, things)}


def read_photograph(path: Path, width: int) -> Tensor:
    """Return a photograph `[1, 3, H, W]`, from 0 to 1, of a width, in its own proportions but for 3 pixels.

    Raises:
        ValueError: it is no RGB image, or far from square.
    """
    image = read_image(path)
    if max(image.size) > MOST_ELONGATED * min(image.size):
        raise ValueError(
            f"a photograph should be at most {MOST_ELONGATED} times as long as it is wide: found {image.width} x "
            f"{image.height} pixels in {path}; cut it"
        )
    if image.mode != "RGB":
        raise ValueError(f"a photograph should be an RGB image: found mode {image.mode!r} in {path}; convert it to RGB")
    height = max(4, 4 * round(image.height * width / image.width / 4))
    pixels = np.asarray(image.resize((width, height), reducing_gap=2.0))
    return torch.from_numpy(pixels.copy()).movedim(-1, 0)[None] / 255


def draw_predictions(
    photograph: Tensor, predictions: Mapping[str, Prediction], classes: Sequence[str], things: Sequence[int]
) -> np.ndarray[Any, Any]:
    """Return one picture `[H, W, 3]` of a photograph, its classes, instances and depth, side by side.

    Args:
        photograph: `[1, 3, H, W]`, from 0 to 1.
        predictions: of it, by task.
        classes: their names.
        things: the numbers of those that have instances.
    """
    cell = (2 * photograph.shape[2], 2 * photograph.shape[3])
    palette = given_colours(colours_of(classes))
    found = predictions["semantics"].mean[0].argmax(0).numpy()
    pixels = (255 * photograph[0].movedim(0, -1)).round().byte().numpy()
    columns = [Column("photograph", [fitted(pixels, cell)]), Column("classes", [fitted(palette[found], cell)])]
    if "instances" in predictions:
        ids = found_instances(predictions, things)[0].numpy()
        columns.append(Column(f"instances: {ids.max()}", [fitted(instance_colours(ids), cell)]))
    for task in ("disparity", "depth"):
        if task in predictions:
            values = predictions[task].mean[0, 0].numpy()
            if "sky" in classes:  # has no depth, and nothing was learnt of it
                values = np.where(found == list(classes).index("sky"), np.nan, values)
            ends = np.nanpercentile(values, (1, 99)) if np.isfinite(values).any() else (0.0, 1.0)
            scale = Scale("viridis", *(float(end) for end in ends))
            shown = number_colours(values, scale.low, scale.high, scale.name)
            columns.append(Column(f"{task}, px" if task == "disparity" else task, [fitted(shown, cell)], scale))
    legend = [(classes[number], palette[number].tolist()) for number in np.unique(found)]
    return draw_sheet("What the network makes of one picture", columns, cell, legend)
