"""What ids of instances say of their pixels: the way to the centroid, and the class that most of them have."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Numbered", "centroid_offsets", "check_whole", "majority_classes", "numbered"]


class Numbered(NamedTuple):
    """The instances of a batch, numbered through from 0.

    Attributes:
        inside: where an instance is `[B, H, W]`.
        of_pixel: the number of the instance of each of those pixels `[N]`.
        numbers: how many there are; some may have no pixel.
    """

    inside: Tensor
    of_pixel: Tensor
    numbers: int


def check_whole(**given: Tensor) -> None:
    """Raise where a map is no tensor of whole numbers, or has no height and width.

    Raises:
        ValueError: so it is.
    """
    for name, value in given.items():
        if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
            found = f"{value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ValueError(f"{name} should be a tensor of whole numbers: found {found}; convert it, as by .long()")
        if value.dim() not in (2, 3):
            raise ValueError(f"{name} should be [H, W] or [B, H, W]: found {list(value.shape)}")
    shapes = {name: list(value.shape) for name, value in given.items()}
    if any(shape != next(iter(shapes.values())) for shape in shapes.values()):
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"maps should have one shape: found {found}; resize them alike")


def numbered(ids: Tensor) -> Numbered:
    """Number the instances of a batch `[B, H, W]` through, image by image; ids below 1 are none."""
    ids = ids.long()
    inside = ids > 0
    if not ids.numel():
        return Numbered(inside, ids.new_zeros(0), 0)
    each = int(ids.max().clamp(min=0)) + 1
    if each * len(ids) > ids.numel():  # ids of a palette: too many to count them all
        there, ids = torch.unique(ids, return_inverse=True)
        each = len(there)
    through = ids + each * torch.arange(len(ids), device=ids.device)[:, None, None]
    return Numbered(inside, through[inside], each * len(ids))


def centroid_offsets(ids: Tensor) -> Tensor:
    r"""Return the way from each pixel to the centroid of its instance, the labels of the task "instances".

    .. math::  x_p = \frac{1}{N} \sum_{q \in I} q - p,

    in pixels, for a pixel `p` of the instance `I` of `N` pixels. Pixels of no instance have NaN, which tasks leave out
    as missing labels. Kendall, Gal & Cipolla (CVPR 2018), section 3.2.2: the network learns it with an L1 loss
    (`Task("laplace")`), and `instances_from_votes` makes instances of it.

    Args:
        ids: whole numbers `[B, H, W]` or `[H, W]`, one for each instance of an image; 0 and less where there is none.
            Put 0 where pixels are not labelled, and for regions of many objects.

    Returns:
        Offsets `[B, 2, H, W]` or `[2, H, W]`, float32: first down (rows), then right (columns).

    Raises:
        ValueError: ids are no whole numbers, or have another shape.

    Example:
        >>> ids = torch.tensor([[7, 7, 7], [0, 0, 3]])
        >>> down, right = centroid_offsets(ids)
        >>> right
        tensor([[ 1.,  0., -1.],
                [nan, nan,  0.]])
        >>> down
        tensor([[0., 0., 0.],
                [nan, nan, 0.]])
    """
    check_whole(ids=ids)
    batch = ids.reshape(-1, *ids.shape[-2:])
    inside, of_pixel, count = numbered(batch)
    _, *places = inside.nonzero(as_tuple=True)
    pixels = torch.bincount(of_pixel, minlength=count)
    offsets = torch.full((*batch.shape, 2), torch.nan, dtype=torch.float32, device=ids.device)
    ways = []
    for place in places:  # whole numbers add up exactly
        total = torch.zeros_like(pixels).index_add_(0, of_pixel, place)
        whole = torch.div(total, pixels.clamp(min=1), rounding_mode="floor")
        part = (total - whole * pixels).to(torch.float32) / pixels
        ways.append((whole[of_pixel] - place) + part[of_pixel])
    offsets[inside] = torch.stack(ways, -1)
    return offsets.movedim(-1, -3).reshape(*ids.shape[:-2], 2, *ids.shape[-2:])


def majority_classes(ids: Tensor, classes: Tensor) -> Tensor:
    """Return the class of each pixel's instance: the one that most of its pixels have, the least of several such.

    Args:
        ids: whole numbers `[B, H, W]` or `[H, W]`, as of `instances_from_votes`; 0 and less where there is none.
        classes: whole numbers, such as predicted classes, of the same shape.

    Returns:
        Classes of the same shape; pixels of no instance keep theirs.

    Raises:
        ValueError: they are no whole numbers, or of two shapes.

    Example:
        >>> majority_classes(torch.tensor([[1, 1, 1, 0]]), torch.tensor([[5, 4, 5, 2]]))
        tensor([[5, 5, 5, 2]])
    """
    check_whole(ids=ids, classes=classes)
    inside, of_pixel, count = numbered(ids.reshape(-1, *ids.shape[-2:]))
    inside = inside.reshape(ids.shape)
    kinds, kind_of_pixel = torch.unique(classes[inside], return_inverse=True)
    votes = torch.bincount(of_pixel * len(kinds) + kind_of_pixel, minlength=count * len(kinds))
    winners = votes.reshape(count, len(kinds)).argmax(1) if len(kinds) else votes
    found = classes.clone()
    found[inside] = kinds[winners[of_pixel]]
    return found
