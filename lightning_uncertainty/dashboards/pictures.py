"""Pictures to loggers that take them, and to folders."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lightning_uncertainty.dashboards.tensorboard import before_keys

__all__ = ["Overlay", "log_pictures", "save_pictures", "takes_pictures"]


class Overlay(NamedTuple):
    """A picture with classes that wandb lays over it, each by a switch of its own.

    Attributes:
        picture: `[H, W, 3]`, uint8.
        masks: by name, a class for each pixel `[H, W]` and the names of the classes.
    """

    picture: np.ndarray
    masks: Mapping[str, tuple[np.ndarray, Mapping[int, str]]]


def takes_pictures(logger: Any) -> bool:
    """Whether `log_pictures` knows how to give a logger pictures: one of wandb, TensorBoard or MLflow."""
    return _kind(getattr(logger, "experiment", None), logger) is not None


def log_pictures(
    logger: Any, pictures: Mapping[str, np.ndarray], overlays: Mapping[str, Sequence[Overlay]], step: int
) -> None:
    """Give a logger pictures `[H, W, 3]`, uint8, by key, if it takes any; overlays go to wandb alone.

    wandb gets all in one row.
    """
    experiment = logger.experiment
    kind = _kind(experiment, logger)
    if kind == "wandb":
        import wandb

        row: dict[str, Any] = {key: wandb.Image(picture) for key, picture in pictures.items()}
        for key, images in overlays.items():
            row[key] = [wandb.Image(image.picture, masks=_masks(image)) for image in images]
        logger.log_metrics(row, step)
        return
    for key, picture in pictures.items():
        if kind == "tensorboard":
            experiment.add_image(before_keys(logger) + key, picture, step, dataformats="HWC")
        elif kind == "mlflow":
            experiment.log_image(logger.run_id, picture, key=before_keys(logger) + key, step=step)


def save_pictures(folder: str | Path, pictures: Mapping[str, np.ndarray], step: int) -> list[Path]:
    """Write pictures as PNG files `<key>/step=<step>.png` in a folder, and return their paths."""
    from PIL import Image

    written = []
    for key, picture in pictures.items():
        path = Path(folder, key, f"step={step:06d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
        written.append(path)
    return written


def _masks(image: Overlay) -> dict[str, dict[str, Any]]:
    return {name: {"mask_data": mask, "class_labels": dict(classes)} for name, (mask, classes) in image.masks.items()}


def _kind(experiment: Any, logger: Any) -> str | None:
    if callable(getattr(experiment, "add_image", None)):
        return "tensorboard"
    if "wandb" in sys.modules:
        from wandb.sdk.wandb_run import Run

        if isinstance(experiment, Run):
            return "wandb"
    if callable(getattr(experiment, "log_image", None)) and isinstance(getattr(logger, "run_id", None), str):
        return "mlflow"
    return None
