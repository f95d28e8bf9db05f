"""Instances from votes: each pixel votes for a place, and a place with many votes is the centre of an instance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_uncertainty.instances._clusterers import CLUSTERERS, Clusterer, means_of, named_clusterer
from lightning_uncertainty.instances._peaks import check_peaks, peaks_of
from lightning_uncertainty.instances.offsets import check_whole

__all__ = ["instances_from_votes"]

DISTANCES = 2**22
"""How many are held at once."""


@torch.no_grad()
def instances_from_votes(
    offsets: Tensor,
    things: Tensor | None = None,
    *,
    classes: Tensor | None = None,
    method: str | Clusterer = "peaks",
    reach: float = 16.0,
    stride: int = 1,
    **options: Any,
) -> Tensor:
    """Return the instance of each pixel: those whose votes, pixel plus offset, meet in one place are one instance.

    Under "peaks", votes are counted on the grid of pixels and the counts smoothed by a Gaussian; their local maxima are
    the centres: torch alone, on any device, in whole batches. The other methods are clusterers of scikit-learn, on the
    CPU: "optics" (as Kendall, Gal & Cipolla, CVPR 2018, section 3.2.2), "dbscan", "hdbscan", "mean_shift". Each pixel
    then belongs to the centre next to its vote.

    Args:
        offsets: predicted, `[B, 2, H, W]` or `[2, H, W]`, in pixels, first down, then right, as of `centroid_offsets`.
            Pixels whose offset is not finite belong to no instance.
        things: True where a pixel may belong to an instance, `[B, H, W]` or `[H, W]`, as where the predicted class is
            one that has instances: `torch.isin(classes, torch.tensor([11, 12]))`. Everywhere where None.
        classes: whole numbers, the predicted class of each pixel, of the same shape. Where given, the pixels of each
            class vote apart, and an instance has one class. Where None all vote together, and `majority_classes` says
            which class an instance has.
        method: "peaks", the name of a clusterer, or an object with `fit_predict`, as those of scikit-learn.
        reach: how far from its centre the vote of a pixel may be, in pixels; if further, it belongs to no instance.
        stride: of every how many rows and columns pixels vote, as clusterers are slow: 2 or 3 for those. All of them
            are assigned.
        options: those of the method. "peaks" has `sigma=2.0`, of the Gaussian, and `radius=5`, within which there is
            one maximum, in pixels; and `least=6.0`, the votes that make one, each of which counts `exp(-d² / 2σ²)` at
            distance d. A clusterer has those of its class in scikit-learn.

    Returns:
        Ids, int64, 1 and more, anew in each image; 0 where there is no instance.

    Raises:
        ValueError: maps have other shapes or types, there is no such method, or it has no such option.
        ModuleNotFoundError: the method needs scikit-learn, which the extra `instances` brings.

    Example:
        >>> from lightning_uncertainty.instances import centroid_offsets
        >>> ids = torch.zeros(24, 32, dtype=torch.long)
        >>> ids[2:9, 3:12], ids[2:9, 12:20] = 1, 2
        >>> instances_from_votes(centroid_offsets(ids)).equal(ids)
        True
    """
    clusterer = _clusterer(method, options)
    for name, value in (("reach", reach), ("stride", stride)):
        if not value > 0 or (name == "stride" and value != int(value)):
            raise ValueError(f"{name} should be a {'whole ' * (name == 'stride')}number above 0: found {value!r}")
    inside = _inside(offsets, things, classes)
    shape, inside = inside.shape, inside.reshape(-1, *inside.shape[-2:])
    image, *places = inside.nonzero(as_tuple=True)
    pixels, maps, split = torch.stack(places, 1), image, 1
    votes = pixels + offsets.reshape(-1, 2, *shape[-2:]).movedim(1, -1)[inside].float()
    order = None
    if classes is not None:  # a map of votes for each class of each image
        kinds, kind = torch.unique(classes.reshape(inside.shape)[inside], return_inverse=True)
        split = max(1, len(kinds))
        maps, order = (image * split + kind).sort(stable=True)
        pixels, votes = pixels[order], votes[order]
    of_map = torch.Size([split * len(inside), *shape[-2:]])
    within = votes.clamp(min=0).minimum(torch.tensor(shape[-2:], device=votes.device) - 1)
    voting = (pixels % stride == 0).all(1) & ((votes - within).abs() <= reach).all(1)
    if clusterer is None:
        cells = within[voting].round().long()
        centres = peaks_of((maps[voting] * shape[-2] + cells[:, 0]) * shape[-1] + cells[:, 1], of_map, **options)
    else:
        centres = means_of(clusterer, votes[voting], torch.bincount(maps[voting], minlength=of_map[0]).tolist())
    nearest = _nearest(votes, maps, centres, of_map[0], reach)
    first = torch.arange(len(inside), device=votes.device) * split
    before = torch.searchsorted(centres[:, 0].long().contiguous(), first)  # centres of images before
    found = torch.where(nearest > 0, nearest - before[maps // split], 0)
    ids = torch.zeros(inside.shape, dtype=torch.int64, device=votes.device)
    ids[inside] = found if order is None else torch.empty_like(found).index_copy_(0, order, found)
    return ids.reshape(shape)


def _nearest(votes: Tensor, maps: Tensor, centres: Tensor, count: int, reach: float) -> Tensor:
    """Return the number of the centre next to each vote `[N]`, among those of its map, from 1; 0 where none is near."""
    sizes, numbers = (torch.bincount(of.long(), minlength=count).tolist() for of in (maps, centres[:, 0]))
    found, before = [votes.new_zeros(0, dtype=torch.int64)], 1
    of_maps = zip(torch.split(votes, sizes), torch.split(centres[:, 1:].to(votes), numbers), strict=True)
    for part, there in of_maps:
        for some in torch.split(part, max(1, DISTANCES // max(1, len(there)))):
            if not len(there):
                found.append(torch.zeros(len(some), dtype=torch.int64, device=votes.device))
                continue
            distances = torch.cdist(some, there, compute_mode="donot_use_mm_for_euclid_dist")
            distance, which = distances.min(1)
            found.append(torch.where(distance <= reach, which + before, 0))
        before += len(there)
    return torch.cat(found)


def _clusterer(method: str | Clusterer, options: dict[str, Any]) -> Clusterer | None:
    """Return what clusters votes, None for "peaks".

    Raises:
        ValueError: there is no such method, or it has no such option.
    """
    if method == "peaks":
        check_peaks(**options)
        return None
    if isinstance(method, str) and method in CLUSTERERS:
        return named_clusterer(method, **options)
    if isinstance(method, str) or not hasattr(method, "fit_predict"):
        raise ValueError(
            f"method should be peaks, {', '.join(CLUSTERERS)}, or have a fit_predict: found {method!r}; name one"
        )
    if options:
        raise ValueError(f"options should be given to the object that is the method: found {', '.join(options)}")
    return method


def _inside(offsets: Tensor, things: Tensor | None, classes: Tensor | None) -> Tensor:
    """Return where a pixel may belong to an instance, in the shape of the offsets without their channel.

    Raises:
        ValueError: maps have other shapes or types.
    """
    if not isinstance(offsets, Tensor) or not offsets.is_floating_point():
        found = f"{offsets.dtype}" if isinstance(offsets, Tensor) else f"a {type(offsets).__name__}"
        raise ValueError(f"offsets should be a tensor of floating-point numbers: found {found}; convert it")
    if offsets.dim() not in (3, 4) or offsets.shape[-3] != 2:
        raise ValueError(f"offsets should be [B, 2, H, W] or [2, H, W]: found {list(offsets.shape)}")
    inside = offsets.isfinite().all(-3)
    if things is not None:
        if not isinstance(things, Tensor) or things.dtype is not torch.bool:
            found = f"{things.dtype}" if isinstance(things, Tensor) else f"a {type(things).__name__}"
            raise ValueError(
                f"things should be a boolean tensor: found {found}; compare classes, as in torch.isin(classes, things)"
            )
        _check_shape("things", things, inside)
        inside &= things
    if classes is not None:
        check_whole(classes=classes)
        _check_shape("classes", classes, inside)
    return inside


def _check_shape(name: str, given: Tensor, inside: Tensor) -> None:
    if given.shape != inside.shape:
        raise ValueError(
            f"{name} should have the shape of the offsets without their channel {list(inside.shape)}: found "
            f"{list(given.shape)}"
        )
