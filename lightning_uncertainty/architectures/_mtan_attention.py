"""What a task of MTAN does at one stage: mask shared features, and carry what it saw to the next stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_uncertainty.architectures._blocks import batch_norm, conv_bn_relu, convolution, resize

__all__ = ["MTANAttention", "carry", "shrink"]


class MTANAttention(nn.Module):
    """One task's mask over the shared features of one stage.

    `a = sigmoid(BN(W_2 * ReLU(BN(W_1 * [u; e]))))`

    `*` is a 1x1 convolution without bias, and `[u; e]` joins channels: shared features u, and what the task carried
    over from the stage before, e; the first stage has none. The features that the task attends to are `a · p`.

    Source: Liu, Johns, Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019.

    Args:
        u_channels: of u, which the mask is computed from.
        p_channels: of p, which the mask is for.
        e_channels: of e, 0 for the first stage.
        middle: channels between the convolutions; a quarter of p's where None.
        dimensions: of the features: 0 for vectors `[B, C]`, 1 for sequences, 2 for images, 3 for volumes.

    Attributes:
        logits: the layers before the sigmoid.

    Example:
        >>> attention = MTANAttention(8, 16, e_channels=4)
        >>> list(attention(torch.ones(2, 8, 5, 7), torch.ones(2, 4, 5, 7)).shape)
        [2, 16, 5, 7]
    """

    def __init__(
        self,
        u_channels: int,
        p_channels: int,
        *,
        e_channels: int = 0,
        middle: int | None = None,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        middle = max(p_channels // 4, 1) if middle is None else middle
        self.logits = nn.Sequential(
            conv_bn_relu(u_channels + e_channels, middle, 1, dimensions),
            convolution(dimensions, middle, p_channels, bias=False),
            batch_norm(dimensions, p_channels),
        )

    def forward(self, u: Tensor, e: Tensor | None = None) -> Tensor:
        """Return the mask `[B, C_p, H, W]`, between 0 and 1.

        Args:
            u: `[B, C_u, H, W]`.
            e: `[B, C_e, H, W]`, None at the first stage.
        """
        seen = u if e is None else torch.cat([u, e], dim=1)
        mask: Tensor = self.logits(seen).sigmoid()
        return mask


def carry(attended: Tensor, block: nn.Module, size: Sequence[int]) -> Tensor:
    """Return what a stage of this size takes from the stage before: `[B, C, H, W]` to `[B, C', *size]`.

    To a smaller stage f goes before the max pooling; to a larger one after the bilinear upsampling.
    """
    if any(wanted > had for had, wanted in zip(attended.shape[2:], size, strict=True)):
        enlarged: Tensor = block(resize(attended, size))
        return enlarged
    return shrink(block(attended), size)


_POOLS: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def shrink(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return `[B, C, H, W]` max-pooled to `[B, C, h, w]`, exactly this size.

    Windows are as large as the ratio of sizes, rounded. Strided convolutions round an odd size up or down, according to
    their padding: so does the pooling here, and only a size that neither way gives is interpolated. (Adaptive pooling
    would give any size, but no ONNX.)
    """
    full = x.shape[2:]
    window = [max(round(had / wanted), 1) for had, wanted in zip(full, size, strict=True)]
    if any(step > 1 for step in window):
        round_up = any(wanted * step > had for had, wanted, step in zip(full, size, window, strict=True))
        x = _POOLS[len(window)](x, window, ceil_mode=round_up)
    return resize(x, size)
