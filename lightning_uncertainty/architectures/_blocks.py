"""Convolutions of which architectures are made; every size of the image is kept."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Bottleneck", "ResidualBlock", "conv_bn_relu"]


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Return convolution, BatchNorm and ReLU: `[B, inputs, H, W]` to `[B, outputs, H, W]`."""
    return nn.Sequential(*_conv_bn(inputs, outputs, kernel), nn.ReLU(inplace=True))


def _conv_bn(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


class _Residual(nn.Module):
    """`ReLU(shortcut(x) + body(x))`, the shortcut a 1x1 convolution where the channels differ."""

    def __init__(self, inputs: int, outputs: int, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if inputs == outputs else nn.Sequential(*_conv_bn(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = (self.shortcut(x) + self.body(x)).relu()
        return result


class ResidualBlock(_Residual):
    """Two 3x3 convolutions with a shortcut (He et al., CVPR 2016): `[B, inputs, H, W]` to `[B, outputs, H, W]`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, nn.Sequential(conv_bn_relu(inputs, outputs), *_conv_bn(outputs, outputs, 3)))


class Bottleneck(_Residual):
    """Convolutions 1x1, 3x3, 1x1 with a shortcut (He et al., CVPR 2016), the middle a quarter as wide.

    `[B, inputs, H, W]` to `[B, outputs, H, W]`.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        middle = max(outputs // 4, 1)
        layers = [conv_bn_relu(inputs, middle, 1), conv_bn_relu(middle, middle), *_conv_bn(middle, outputs, 1)]
        super().__init__(inputs, outputs, nn.Sequential(*layers))
