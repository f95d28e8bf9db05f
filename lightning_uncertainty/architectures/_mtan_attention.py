"""What a task of MTAN does at one stage: mask shared features, and carry what it saw to the next stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_uncertainty.architectures._architecture import resize
from lightning_uncertainty.architectures._blocks import conv_bn_relu

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

    Attributes:
        logits: the layers before the sigmoid.

    Example:
        >>> attention = MTANAttention(8, 16, e_channels=4)
        >>> list(attention(torch.ones(2, 8, 5, 7), torch.ones(2, 4, 5, 7)).shape)
        [2, 16, 5, 7]
    """

    def __init__(self, u_channels: int, p_channels: int, *, e_channels: int = 0, middle: int | None = None) -> None:
        super().__init__()
        middle = max(p_channels // 4, 1) if middle is None else middle
        self.logits = nn.Sequential(
            conv_bn_relu(u_channels + e_channels, middle, 1),
            nn.Conv2d(middle, p_channels, 1, bias=False),
            nn.BatchNorm2d(p_channels),
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
    height, width = attended.shape[-2:]
    if size[0] > height or size[1] > width:
        enlarged: Tensor = block(resize(attended, size))
        return enlarged
    return shrink(block(attended), size)


def shrink(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return `[B, C, H, W]` max-pooled to `[B, C, h, w]`, exactly this size.

    Windows are as large as the ratio of sizes, rounded. Strided convolutions round an odd size up or down, according to
    their padding: so does the pooling here, and only a size that neither way gives is interpolated. (Adaptive pooling
    would give any size, but no ONNX.)
    """
    full = x.shape[-2:]
    window = [max(round(had / wanted), 1) for had, wanted in zip(full, size, strict=True)]
    if window != [1, 1]:
        round_up = any(wanted * step > had for had, wanted, step in zip(full, size, window, strict=True))
        x = F.max_pool2d(x, window, ceil_mode=round_up)
    return resize(x, size)
