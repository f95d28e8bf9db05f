"""What is shown of a batch as its picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_uncertainty.tasks.task import pick

__all__ = ["Where", "channels_first", "found_at", "photographs", "picture_of"]

Where = str | int | Callable[[Any], Any]
_KEYS = ("image", "images", "img", "inputs", "input", "pixel_values", "x")


def found_at(batch: Any, where: Where, what: str, mend: str) -> Any:
    """Return what a batch has under a key, at a place of a tuple, or a function of it.

    Raises:
        ValueError: the batch has nothing there.

    Example:
        >>> found_at((1.0, 2.0), 1, "labels", "name another place")
        2.0
    """
    if isinstance(where, int) and not isinstance(batch, Mapping):
        if isinstance(batch, list | tuple) and -len(batch) <= where < len(batch):
            return batch[where]
        found = f"{len(batch)} parts" if isinstance(batch, list | tuple) else f"a {type(batch).__name__}"
        raise ValueError(f"{what} should be at place {where} of the batch: found {found}; {mend}")
    return pick(batch, where, what, mend)  # type: ignore[arg-type]


def picture_of(batch: Any, where: Where | None, module: Any) -> Tensor | None:
    """Return the pictures `[B, ...]` of a batch, or what stands in their place; None where nothing does.

    Args:
        batch: any.
        where: key, place or function; where None what a `MultiTaskModule` takes, a usual key, or the first of a tuple.
        module: that the Trainer runs.

    Raises:
        ValueError: the batch has nothing at `where`, or no tensor.
    """
    if where is not None:
        found = found_at(batch, where, "pictures", "name another with image=..., or give a function of the batch there")
        if not isinstance(found, Tensor):
            raise ValueError(
                f"pictures should be a tensor [B, C, H, W]: found a {type(found).__name__} with image={where!r}; give "
                "a function of the batch that returns one"
            )
        return found
    if callable(inputs_of := getattr(module, "inputs_of", None)):
        found = inputs_of(batch)
    elif isinstance(batch, Mapping):
        found = next((batch[key] for key in _KEYS if key in batch), None)
    else:
        found = batch[0] if isinstance(batch, list | tuple) and batch else batch
    return found if isinstance(found, Tensor) else None


def photographs(
    pictures: Tensor,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    to_image: Callable[[Tensor], Tensor] | None,
) -> list[np.ndarray]:
    """Return pictures as pixels `[H, W, 3]`, uint8, one by one.

    Args:
        pictures: `[B, C, H, W]`, `[B, H, W, C]` with 1, 3 or 4 channels, `[B, H, W]`, or of volumes `[B, C, D, H, W]`,
            of which the middle is shown. Whole numbers of 8 bits are shown as they are.
        mean: of each channel, by which they were normalised, with `std`; pixels are then from 0 to 1.
        std: likewise.
        to_image: makes pictures of them first: uint8, or from 0 to 1.
    """
    if to_image is not None:
        pictures = to_image(pictures)
    if pictures.dim() == 5:
        pictures = pictures[:, :, pictures.shape[2] // 2]
    if pictures.dim() == 3:
        pictures = pictures.unsqueeze(1)
    pictures = channels_first(pictures)
    pictures = pictures[:, :3] if pictures.shape[1] >= 3 else pictures[:, :1].expand(-1, 3, -1, -1)
    pictures = pictures.detach().cpu()
    if pictures.dtype is torch.uint8:
        return list(pictures.permute(0, 2, 3, 1).contiguous().numpy())
    values = pictures.float()
    if mean is not None or std is not None:
        of = [torch.tensor(x, dtype=values.dtype).reshape(-1, 1, 1)[:3] for x in (mean or [0.0], std or [1.0])]
        values = values * of[1] + of[0]
    elif to_image is None:
        values = torch.stack([_stretched(picture) for picture in values])
    values = (255 * values.nan_to_num(0.0).clamp(0, 1)).round().to(torch.uint8)
    return list(values.permute(0, 2, 3, 1).contiguous().numpy())


def channels_first(pictures: Tensor) -> Tensor:
    """Return pictures `[B, C, H, W]` that may be `[B, H, W, C]` with 1, 3 or 4 channels; any others as they are."""
    if pictures.dim() == 4 and pictures.shape[1] not in (1, 3, 4) and pictures.shape[-1] in (1, 3, 4):
        return pictures.movedim(-1, 1)
    return pictures


def _stretched(picture: Tensor) -> Tensor:
    """Return a picture whose 1 % and 99 % are 0 and 1."""
    known = picture[picture.isfinite()].numpy()
    if not known.size:
        return torch.zeros_like(picture)
    low, high = np.quantile(known, [0.01, 0.99])
    return (picture - float(low)) / max(float(high - low), 1e-12)
