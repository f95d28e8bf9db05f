"""Task attention: what two tasks have in common is found and amplified in both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_uncertainty.architectures._blocks import check_dimensions, convolution

__all__ = ["TaskAttention"]


class TaskAttention(nn.Module):
    """Task-attentional module (TAM): the features of two tasks become one, amplified where both agree they matter.

    In order::

        B   = sigmoid(psi1[f1; f2])            which task to trust
        f_b = psi2[B * f1; (1 - B) * f2]       the balanced features
        M   = sigmoid(refine(f_b))             where to look
        out = psi3[(1 + M) * f1; (1 + M) * f2]

    `psi1`, `psi2` and `psi3` are 1x1 convolutions, `[a; b]` joins channels, and `refine` is a strided convolution, ReLU
    and a transposed convolution back to the same size, odd or even.

    Source: Zhang et al., "Joint Task-Recursive Learning for Semantic Segmentation and Depth Estimation", ECCV 2018.

    Args:
        channels: C of either task's features.
        dimensions: of the features: 1 for sequences `[B, C, L]`, 2 for images, 3 for volumes.

    Raises:
        ValueError: dimensions are others.

    Example:
        >>> attention = TaskAttention(8)
        >>> list(attention(torch.ones(2, 8, 5, 7), torch.zeros(2, 8, 5, 7)).shape)
        [2, 8, 5, 7]
    """

    def __init__(self, channels: int, dimensions: int = 2) -> None:
        super().__init__()
        check_dimensions(dimensions, "TaskAttention", at_least=1)
        self.psi1 = convolution(dimensions, 2 * channels, channels)
        self.psi2 = convolution(dimensions, 2 * channels, channels)
        self.psi3 = convolution(dimensions, 2 * channels, channels)
        self.refine: nn.Module = _ConvDeconv(channels, dimensions)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return features `[B, C, H, W]`.

        Args:
            first: one task's features `[B, C, H, W]`, those that `B` weighs.
            second: the other task's, of the same shape.

        Raises:
            ValueError: shapes differ.
        """
        if first.shape != second.shape:
            raise ValueError(
                f"features of two tasks should have one shape: found {list(first.shape)} and {list(second.shape)}; "
                "resize one of them"
            )
        balance = self.psi1(_join(first, second)).sigmoid()
        balanced = self.psi2(_join(balance * first, (1 - balance) * second))
        gain = 1 + self.refine(balanced).sigmoid()
        attended: Tensor = self.psi3(_join(gain * first, gain * second))
        return attended


class _ConvDeconv(nn.Module):
    """Halve the size and restore it: `[B, C, H, W]` to the same."""

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dimensions - 1]
        self.conv = convolution(dimensions, channels, channels, 3, stride=2)
        self.deconv = transposed(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        restored: Tensor = self.deconv(self.conv(x).relu(), output_size=x.shape[2:])
        return restored


def _join(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first, second], 1)
