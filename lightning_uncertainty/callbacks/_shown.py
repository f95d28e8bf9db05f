"""What is shown of a task on each image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_uncertainty.callbacks._looks import Look
from lightning_uncertainty.callbacks._panels import Shown

__all__ = ["array_of", "channel_of", "images_of"]


def images_of(look: Look, name: str, classes: bool) -> list[Shown]:
    """Return what is shown of a task on the images of a batch; of volumes the middle."""
    prediction, labels = look.predictions[name], look.labels.get(name)
    label = None if labels is None else torch.where(labels.there, labels.values.double(), torch.nan)
    bare = prediction.mean.dim() == 3  # no channels
    volume = prediction.mean.dim() == 5

    def plane(values: Tensor, place: int) -> np.ndarray:
        values = values[place]
        values = values[..., values.shape[-3] // 2, :, :] if volume else values
        return values.detach().double().cpu().numpy()

    found = []
    for place in look.rows.shown.values():
        parts = [None if part is None else plane(part, place) for part in (prediction.mean, label, *prediction[1:3])]
        if bare and not classes:
            parts = [None if part is None else part[None] for part in parts]
        found.append(Shown(*parts))  # type: ignore[arg-type]
    return found


def channel_of(image: Shown, channel: int) -> Shown:
    return Shown(*(None if part is None else part[channel : channel + 1] for part in image))  # type: ignore[arg-type]


def array_of(values: Any) -> np.ndarray:
    """Return what a function of the user's gives for an image; a single channel is left out."""
    array = values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    array = array.float() if array.dtype in (torch.bfloat16, torch.float16) else array
    array = array[0] if array.dim() == 3 and len(array) == 1 else array
    if array.dim() not in (2, 3) or (array.dim() == 3 and len(array) not in (2, 3)):
        raise ValueError(f"panels should be [B, H, W], [B, 2, H, W] or [B, 3, H, W]: found {list(array.shape)} for one")
    return np.asarray(array.numpy())
