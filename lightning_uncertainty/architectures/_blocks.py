"""Layers of which architectures are made, for any number of dimensions; the places of a feature are kept.

The features of a vector are `[B, C]`, of a sequence `[B, C, L]`, of an image `[B, C, H, W]`, of a volume
`[B, C, D, H, W]`: 0, 1, 2 or 3 `dimensions`. Where there are no places, a convolution is a linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Bottleneck",
    "MeanOverPlaces",
    "ResidualBlock",
    "batch_norm",
    "check_dimensions",
    "check_made",
    "conv_bn_relu",
    "convolution",
    "resize",
    "shape",
]

_PLACES = ("", ", l", ", h, w", ", d, h, w")
_INPUTS = ("vectors", "sequences", "images", "volumes")
_CONVOLUTIONS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MODES = ("nearest", "linear", "bilinear", "trilinear")


def shape(channels: int, dimensions: int) -> str:
    """Return how features are written: `[B, 8, h, w]`."""
    return f"[B, {channels}{_PLACES[dimensions]}]"


def convolution(
    dimensions: int, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, bias: bool = True
) -> nn.Module:
    """Return a convolution that keeps places, or one of each `stride`: `[B, inputs, ...]` to `[B, outputs, ...]`."""
    if dimensions == 0:
        return nn.Linear(inputs, outputs, bias=bias)
    kind: Any = _CONVOLUTIONS[dimensions]
    made: nn.Module = kind(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
    return made


def batch_norm(dimensions: int, channels: int, momentum: float = 0.1) -> nn.Module:
    """Return BatchNorm of features `[B, channels, ...]`."""
    made: nn.Module = _NORMS[dimensions](channels, momentum=momentum)
    return made


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return `[B, C, ...]` resized to `[B, C, *size]`: linearly, bilinearly or trilinearly."""
    if x.shape[2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode=_MODES[len(size)], align_corners=False)


def check_dimensions(dimensions: int, what: str, at_least: int = 0) -> int:
    """Return a number of dimensions.

    Raises:
        ValueError: it is none that the architecture takes.
    """
    if isinstance(dimensions, bool) or dimensions not in range(at_least, 4):
        known = ", ".join(f"{number} ({name})" for number, name in enumerate(_INPUTS) if number >= at_least)
        why = f"; vectors have no places, which {what} is about: use HardSharing or MTAN" if dimensions == 0 else ""
        raise ValueError(f"dimensions of {what} should be one of {known}: found {dimensions!r}{why}")
    return dimensions


def check_made(module: nn.Module, dimensions: int, what: str) -> nn.Module:
    """Return a module that a function of the user's has made.

    Raises:
        ValueError: its convolutions are for other dimensions.
    """
    kinds = [type(part) for part in module.modules() if isinstance(part, _CONVOLUTIONS[1:])]
    if wrong := [kind for kind in kinds if kind is not _CONVOLUTIONS[dimensions]]:
        raise ValueError(
            f"{what} should be for {dimensions} dimensions ({_INPUTS[dimensions]}): found a {wrong[0].__name__}; give "
            f"one that makes others, as functools.partial(..., dimensions={dimensions}) of ours does"
        )
    return module


class MeanOverPlaces(nn.Module):
    """The mean over all places: `[B, C, ...]` to `[B, C]`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 3, dimensions: int = 2) -> nn.Sequential:
    """Return convolution, BatchNorm and ReLU: `[B, inputs, ...]` to `[B, outputs, ...]`."""
    return nn.Sequential(*_conv_bn(inputs, outputs, kernel, dimensions), nn.ReLU(inplace=True))


def _conv_bn(inputs: int, outputs: int, kernel: int, dimensions: int) -> list[nn.Module]:
    return [convolution(dimensions, inputs, outputs, kernel, bias=False), batch_norm(dimensions, outputs)]


class _Residual(nn.Module):
    """`ReLU(shortcut(x) + body(x))`, the shortcut a 1x1 convolution where the channels differ."""

    def __init__(self, inputs: int, outputs: int, body: nn.Module, dimensions: int) -> None:
        super().__init__()
        self.body = body
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_bn(inputs, outputs, 1, dimensions))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = (self.shortcut(x) + self.body(x)).relu()
        return result


class ResidualBlock(_Residual):
    """Two 3x3 convolutions with a shortcut (He et al., CVPR 2016): `[B, inputs, ...]` to `[B, outputs, ...]`."""

    def __init__(self, inputs: int, outputs: int, dimensions: int = 2) -> None:
        first = conv_bn_relu(inputs, outputs, dimensions=dimensions)
        super().__init__(inputs, outputs, nn.Sequential(first, *_conv_bn(outputs, outputs, 3, dimensions)), dimensions)


class Bottleneck(_Residual):
    """Convolutions 1x1, 3x3, 1x1 with a shortcut (He et al., CVPR 2016), the middle a quarter as wide.

    `[B, inputs, H, W]` to `[B, outputs, H, W]`.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        dimensions: of the features: 0 for vectors `[B, C]`, 1 for sequences `[B, C, L]`, 2 for images, 3 for volumes.
    """

    def __init__(self, inputs: int, outputs: int, dimensions: int = 2) -> None:
        middle = max(outputs // 4, 1)
        first, second = conv_bn_relu(inputs, middle, 1, dimensions), conv_bn_relu(middle, middle, 3, dimensions)
        body = nn.Sequential(first, second, *_conv_bn(middle, outputs, 1, dimensions))
        super().__init__(inputs, outputs, body, dimensions)
