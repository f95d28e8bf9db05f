"""Task attention: what two tasks have in common is found and amplified in both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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

    Example:
        >>> attention = TaskAttention(8)
        >>> list(attention(torch.ones(2, 8, 5, 7), torch.zeros(2, 8, 5, 7)).shape)
        [2, 8, 5, 7]
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.psi1 = nn.Conv2d(2 * channels, channels, 1)
        self.psi2 = nn.Conv2d(2 * channels, channels, 1)
        self.psi3 = nn.Conv2d(2 * channels, channels, 1)
        self.refine: nn.Module = _ConvDeconv(channels)

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

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.deconv = nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        restored: Tensor = self.deconv(self.conv(x).relu(), output_size=x.shape[-2:])
        return restored


def _join(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first, second], 1)
