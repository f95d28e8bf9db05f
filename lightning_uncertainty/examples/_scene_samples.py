"""Scenes as samples of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_uncertainty.examples._scene_folders import Array
from lightning_uncertainty.examples._scene_net import STRIDE
from lightning_uncertainty.instances import DenseTransforms, centroid_offsets, instances_from_votes

__all__ = ["Scenes", "instances_within"]


class Scenes(Dataset["dict[str, Tensor]"]):
    """Scenes as samples of tensors.

    A sample has `image` `[3, H, W]`, from 0 to 1; `semantics` `[H, W]`, 255 where there is no class; and what there is
    of `instances` `[2, H, W]`, the offsets to the centroids of `ids` `[H, W]`, of `disparity` `[1, H, W]`, `depth`
    `[1, H, W]` and `normals` `[3, H, W]`, NaN where unknown.

    Args:
        raw: scenes as arrays.
        training: whether to mirror and to light them at random, and to take labels at a stride of 4.
    """

    def __init__(self, raw: Sequence[Mapping[str, Array]], *, training: bool = False) -> None:
        self.raw, self.training = raw, training

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        scene = {name: torch.from_numpy(np.array(part)) for name, part in self.raw[index].items()}
        scene["image"] = scene["image"].movedim(-1, 0) / (255 if scene["image"].dtype == torch.uint8 else 1)
        scene["semantics"] = scene["semantics"].long()
        if "ids" in scene:
            scene["ids"] = scene["ids"].long()
            scene["instances"] = centroid_offsets(scene["ids"])
        if "normals" in scene:
            scene["normals"] = scene["normals"].movedim(-1, 0)
        for name in scene.keys() & {"disparity", "depth"}:
            scene[name] = scene[name][None]
        scene = {name: part.float() if part.is_floating_point() else part for name, part in scene.items()}
        return self._varied(scene) if self.training else scene

    def _varied(self, scene: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a sample for training."""
        directed = {name: key for name, key in {"offsets": "instances", "normals": "normals"}.items() if key in scene}
        scene = _strided(DenseTransforms(**directed).random_horizontal_flip(scene))
        gain, shift = 0.9 + 0.2 * torch.rand(()), 0.08 * (2 * torch.rand(3, 1, 1) - 1)
        scene["image"] = (gain * scene["image"] + shift).clamp(0, 1)
        return scene


def _strided(scene: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a sample with labels at a stride: of the pixel right of and below each cell's centre."""
    rows, columns = (
        (torch.arange(-(-length // STRIDE)) * STRIDE + STRIDE // 2).clamp(max=length - 1)
        for length in scene["semantics"].shape
    )
    found = {name: part if name == "image" else part[..., rows[:, None], columns] for name, part in scene.items()}
    if "instances" in found:
        found["instances"] = found["instances"] + 0.5  # from the centre of the cell
    return found


def instances_within(offsets: Tensor, classes: Tensor, things: Sequence[int]) -> Tensor:
    """Return the instances `[B, H, W]` that offsets `[B, 2, H, W]` meet in, of classes `[B, H, W]` that have some."""
    inside = torch.isin(classes, torch.tensor(list(things), device=classes.device))
    return instances_from_votes(offsets, inside, classes=classes)
