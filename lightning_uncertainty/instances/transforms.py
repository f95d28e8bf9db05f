"""Flips, crops and other sizes of pictures with their labels, of which some have a direction or a length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["DenseTransforms"]

Names = str | Iterable[str]


@dataclass(frozen=True)
class DenseTransforms:
    """Flips, crops and resizes a batch, or one sample of it, and keeps offsets, disparities and normals right.

    In a mirrored picture offsets and normals point the other way; in one of another size offsets are longer or shorter,
    and so are disparities, which are lengths along the width. All other maps, which have the height and width of the
    picture, move with their pixels: classes, ids, depth in metres, masks. What is no map stays as it is, boxes and
    matrices of a camera too. Names are those of `torchvision.transforms.v2.functional`. What is random is drawn for
    each sample by itself, from `generator` or torch's own; the factor of `random_rescale` is one for all.

    Args:
        image: key of the picture, `[B, C, H, W]`, or `[C, H, W]` of a sample.
        offsets: keys of offsets in pixels, down and right, as of `centroid_offsets`, `[B, 2, H, W]`.
        disparity: keys of disparities in pixels, `[B, H, W]` or `[B, 1, H, W]`.
        normals: keys of normals of surfaces, right, down and out of the picture, `[B, 3, H, W]`.

    Example:
        >>> from lightning_uncertainty.instances import centroid_offsets
        >>> ids = torch.tensor([[[1, 1, 1, 0]]])
        >>> batch = {"image": torch.rand(1, 3, 1, 4), "ids": ids, "instances": centroid_offsets(ids)}
        >>> transforms = DenseTransforms(offsets="instances")
        >>> flipped = transforms.horizontal_flip(batch)
        >>> flipped["ids"]
        tensor([[[0, 1, 1, 1]]])
        >>> flipped["instances"][0, 1]  # to the right
        tensor([[nan,  1., -0., -1.]])
        >>> batch = transforms.random_crop(transforms.random_horizontal_flip(batch), (1, 2))
    """

    image: str = "image"
    offsets: Names = ()
    disparity: Names = ()
    normals: Names = ()

    def horizontal_flip(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Mirror left and right.

        Raises:
            ValueError: as every method: the batch lacks the picture or a map that is named, or they do not fit.
        """
        return self._flipped(batch, -1)

    def vertical_flip(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Mirror up and down, where pictures have no upright."""
        return self._flipped(batch, -2)

    def crop(self, batch: Mapping[str, Any], top: int, left: int, height: int, width: int) -> dict[str, Any]:
        """Cut a window out; offsets still lead to the centroid of the whole instance.

        Raises:
            ValueError: the window is not within the picture.
        """
        self._check_window(batch, top, left, height, width)
        return self._changed(batch, lambda name, value: value[..., top : top + height, left : left + width])

    def resize(self, batch: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
        """Bring everything to a height and width: the picture bilinearly, labels from the pixel next to each.

        Votes of an instance, pixel plus offset, still meet in one place, though pixels are off by a part of one.
        """
        height, width = self._picture(batch).shape[-2:]
        _check_pair("size", size, "a height and a width of 1 pixel or more", 1)

        def change(name: str, value: Tensor) -> Tensor:
            if name == self.image:
                return _bilinear(value, size)
            rows, down = _next_to(size[0], height, value.device)
            columns, right = _next_to(size[1], width, value.device)
            value = value[..., rows[:, None], columns]
            if name in _names(self.offsets):
                y, x = value.unbind(-3)
                return torch.stack([(y + down[:, None]) * (size[0] / height), (x + right) * (size[1] / width)], -3)
            return value * (size[1] / width) if name in _names(self.disparity) else value

        return self._changed(batch, change)

    def random_horizontal_flip(
        self, batch: Mapping[str, Any], p: float = 0.5, generator: torch.Generator | None = None
    ) -> dict[str, Any]:
        """Mirror left and right with a probability."""
        return self._chosen(batch, self.horizontal_flip(batch), p, generator)

    def random_vertical_flip(
        self, batch: Mapping[str, Any], p: float = 0.5, generator: torch.Generator | None = None
    ) -> dict[str, Any]:
        """Mirror up and down with a probability."""
        return self._chosen(batch, self.vertical_flip(batch), p, generator)

    def random_crop(
        self, batch: Mapping[str, Any], size: tuple[int, int], generator: torch.Generator | None = None
    ) -> dict[str, Any]:
        """Cut a window of a height and width out, anywhere.

        Raises:
            ValueError: the window is larger than the picture.
        """
        picture = self._picture(batch)
        _check_pair("size", size, "a height and a width of 1 pixel or more", 1)
        self._check_window(batch, 0, 0, *size)
        count = len(picture) if picture.dim() == 4 else 1
        tops, lefts = (
            torch.randint(whole - part + 1, (count,), generator=generator).tolist()
            for whole, part in zip(picture.shape[-2:], size, strict=True)
        )

        def change(name: str, value: Tensor) -> Tensor:
            each = value if picture.dim() == 4 else value[None]
            windows = zip(each, tops, lefts, strict=True)
            cut = torch.stack([x[..., top : top + size[0], left : left + size[1]] for x, top, left in windows])
            return cut if picture.dim() == 4 else cut[0]

        return self._changed(batch, change)

    def random_rescale(
        self, batch: Mapping[str, Any], scale: tuple[float, float], generator: torch.Generator | None = None
    ) -> dict[str, Any]:
        """Resize all samples by one factor between two; a crop then brings batches to one size."""
        _check_pair("scale", scale, "a least and a largest factor above 0", 0)
        low, high = scale
        if not 0 < low <= high:
            raise ValueError(f"scale should be a least and a largest factor above 0: found {scale!r}")
        factor = low + (high - low) * torch.rand((), generator=generator).item()
        height, width = self._picture(batch).shape[-2:]
        return self.resize(batch, (max(1, round(factor * height)), max(1, round(factor * width))))

    def _flipped(self, batch: Mapping[str, Any], dim: int) -> dict[str, Any]:
        turned = dict.fromkeys(_names(self.normals), -1 - dim) | dict.fromkeys(_names(self.offsets), dim + 2)

        def change(name: str, value: Tensor) -> Tensor:
            value = value.flip(dim)
            if name in turned:
                value.select(-3, turned[name]).neg_()  # of a copy
            return value

        return self._changed(batch, change)

    def _chosen(
        self, batch: Mapping[str, Any], changed: Mapping[str, Any], p: float, generator: torch.Generator | None
    ) -> dict[str, Any]:
        picture = self._picture(batch)
        if not 0 <= p <= 1:
            raise ValueError(f"p should be a probability: found {p!r}")
        chosen = torch.rand(len(picture) if picture.dim() == 4 else 1, generator=generator) < p

        def change(name: str, value: Tensor) -> Tensor:
            where = chosen.to(value.device).reshape(-1, *[1] * (value.dim() - (picture.dim() == 4)))
            return torch.where(where if picture.dim() == 4 else where[0], changed[name], value)

        return self._changed(batch, change)

    def _changed(self, batch: Mapping[str, Any], change: Callable[[str, Tensor], Tensor]) -> dict[str, Any]:
        """Return the batch with its maps changed.

        Raises:
            ValueError: the batch lacks the picture or a map that is named, or they do not fit.
        """
        picture = self._picture(batch)
        parts = dict.fromkeys(_names(self.offsets), 2) | dict.fromkeys(_names(self.normals), 3)
        for name in (*parts, *_names(self.disparity)):
            value = batch.get(name, "nothing")
            fits = isinstance(value, Tensor) and _is_map(value, picture)
            if value is not None and (not fits or (name in parts and (value.shape[-3:-2] != (parts[name],)))):
                what = f"[B, {parts[name]}, H, W]" if name in parts else "[B, H, W]"
                found = list(value.shape) if isinstance(value, Tensor) else value if value == "nothing" else type(value)
                raise ValueError(
                    f"{name!r} should be a map {what} beside a picture {list(picture.shape)}: found {found}; name the "
                    "keys that the batch has"
                )
        return {
            name: change(name, value) if isinstance(value, Tensor) and _is_map(value, picture) else value
            for name, value in batch.items()
        }

    def _picture(self, batch: Mapping[str, Any]) -> Tensor:
        picture = batch.get(self.image) if isinstance(batch, Mapping) else None
        if not isinstance(picture, Tensor) or picture.dim() not in (3, 4):
            found = list(picture.shape) if isinstance(picture, Tensor) else ", ".join(map(str, batch))
            raise ValueError(
                f"the picture should be a tensor [B, C, H, W] or [C, H, W] under {self.image!r}: found {found}; name "
                "another key with image=..."
            )
        return picture

    def _check_window(self, batch: Mapping[str, Any], top: int, left: int, height: int, width: int) -> None:
        whole = self._picture(batch).shape[-2:]
        if min(top, left) < 0 or min(height, width) < 1 or top + height > whole[0] or left + width > whole[1]:
            raise ValueError(
                f"a crop should be within the picture {list(whole)}: found rows {top} to {top + height}, columns "
                f"{left} to {left + width}; take a smaller one, or resize first"
            )


def _check_pair(name: str, given: Any, what: str, least: int) -> None:
    if not isinstance(given, Sequence) or len(given) != 2 or min(given) < least:
        raise ValueError(f"{name} should be {what}: found {given!r}; give two such numbers")


def _names(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _is_map(value: Tensor, picture: Tensor) -> bool:
    """Whether a tensor has the height and width of the picture, and is of as many samples."""
    alike = value.dim() >= picture.dim() - 1 and value.shape[-2:] == picture.shape[-2:]
    return alike and (picture.dim() == 3 or len(value) == len(picture))


def _next_to(size: int, before: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the pixel before that is next to each pixel now `[size]`, and how far on it is, in pixels before."""
    now = torch.arange(size, device=device)
    pixel = torch.div((2 * now + 1) * before, 2 * size, rounding_mode="floor")
    return pixel, pixel - ((now + 0.5) * (before / size) - 0.5)


def _bilinear(picture: Tensor, size: tuple[int, int]) -> Tensor:
    batch = picture if picture.dim() == 4 else picture[None]
    wide = batch if batch.dtype is torch.float64 else batch.float()  # CPUs have no bfloat16 for it
    found = F.interpolate(wide, size, mode="bilinear", antialias=True)
    found = (found if batch.is_floating_point() else found.round()).to(batch.dtype)
    return found if picture.dim() == 4 else found[0]
