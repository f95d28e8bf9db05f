"""Joint task-recursive learning: two tasks decode in turns, each from what the other has just found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_uncertainty.architectures._architecture import Architecture, check_tasks, resize
from lightning_uncertainty.architectures._backbone import Backbone, as_backbone, check_channels, features_of
from lightning_uncertainty.architectures._blocks import ResidualBlock
from lightning_uncertainty.architectures._task_attention import TaskAttention

__all__ = ["JTRL"]


class JTRL(Architecture):
    """Two tasks A and B decode in turns, A_1, B_1, A_2, B_2, ..., from the coarsest features x_1 to the finest.

    The order, `[a; b]` joining channels::

        A_1 = decode(x_1)                             B_1 = decode[A_1; x_1]
        A_k = decode[TAM(up A_k-1, up B_k-1); x_k]    B_k = decode[TAM(A_k, up B_k-1); x_k]

    `TAM` is `TaskAttention`, with A always first, and `decode` is two residual blocks. `up` doubles the size and halves
    the channels: convolutions of 1, 3, 5 and 7 pixels side by side, then PixelShuffle; where the backbone's features
    x_k have another size than that, bilinear resizing follows. While a task has no features yet, at the first scale,
    there is nothing to attend to: A starts from the backbone alone, and B from A's features as they are.

    Every step has a 1x1 prediction. Those of the last scale bear the tasks' names, those before it `<task>_1`,
    `<task>_2`, ...: `depth_1`, `depth_2`, `depth_3`, `depth` with four scales, as in the paper.

    Source: Zhang et al., "Joint Task-Recursive Learning for Semantic Segmentation and Depth Estimation", ECCV 2018.
    There depth comes first, and its loss is `berhu`.

    Args:
        backbone: a module, or stages; its features run from the finest to the coarsest.
        channels: of each of the features, two or more: there are as many scales.
        outputs: channels of the prediction by task; the first task decodes first.
        width: channels of the tasks' features at the coarsest scale, halved at every scale after it.

    Raises:
        ValueError: there are not two tasks, there are fewer than two scales, width cannot be halved often enough, or a
            task has the name of another's prediction; on forward, the features do not have these channels.

    Example:
        >>> stages = [nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 16, 3, stride=2)]
        >>> net = JTRL(stages, [8, 16], {"depth": 1, "semantics": 5}, width=16)
        >>> {name: list(prediction.shape) for name, prediction in net(torch.ones(2, 3, 33, 47)).items()}
        {'depth_1': [2, 1, 33, 47], 'semantics_1': [2, 5, 33, 47], 'depth': [2, 1, 33, 47], 'semantics': [2, 5, 33, 47]}
    """

    def __init__(
        self, backbone: Backbone, channels: Sequence[int], outputs: Mapping[str, int], *, width: int = 256
    ) -> None:
        first, second = _two(outputs)
        scales = len(channels)
        widths = _widths(width, scales)
        super().__init__(_predictions(first, second, scales))
        self.channels = tuple(channels)
        self.backbone = as_backbone(backbone)
        coarsest, *finer = zip(reversed(self.channels), widths, strict=True)
        self.start = _FirstScale(*coarsest)
        self.scales = nn.ModuleList(_Scale(skip, width) for skip, width in finer)
        convolutions = [nn.Conv2d(width, outputs[task], 1) for width in widths for task in (first, second)]
        self.heads = nn.ModuleDict(dict(zip(self.predictions, convolutions, strict=True)))

    def predict(self, inputs: Any) -> dict[str, Tensor]:
        features = features_of(self.backbone, inputs)
        check_channels(features, self.channels)
        first, second = self.start(features[-1])
        steps = [first, second]
        for scale, skip in zip(self.scales, features[-2::-1], strict=True):
            first, second = scale(first, second, skip)
            steps += [first, second]
        return {name: head(step) for (name, head), step in zip(self.heads.items(), steps, strict=True)}

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return all parameters but those of the predictions and of the very last step: no other task follows them."""
        *before, last = cast("list[_Scale]", list(self.scales))
        shared = [self.backbone, self.start, *before, last.upsampling, last.first]
        return [parameter for module in shared for parameter in module.parameters()]


class _FirstScale(nn.Module):
    """Both tasks' steps at the coarsest scale: one has nothing but the backbone's features, the other both."""

    def __init__(self, skip: int, width: int) -> None:
        super().__init__()
        self.first = _decoder(skip, width)
        self.second = _decoder(width + skip, width)

    def forward(self, skip: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(skip)
        return first, self.second(torch.cat([first, skip], 1))


class _Scale(nn.Module):
    """Both tasks' steps at a finer scale, from their features at the one before, twice as wide."""

    def __init__(self, skip: int, width: int) -> None:
        super().__init__()
        self.upsampling = nn.ModuleList([_Upsampling(2 * width), _Upsampling(2 * width)])
        self.first = _Step(skip, width)
        self.second = _Step(skip, width)

    def forward(self, first: Tensor, second: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        size = skip.shape[-2:]
        first, second = (resize(up(x), size) for up, x in zip(self.upsampling, (first, second), strict=True))
        first = self.first(first, second, skip)
        return first, self.second(first, second, skip)


class _Step(nn.Module):
    """Attend to both tasks, join what the backbone has, decode: `[B, C, H, W]` of either to the same of one."""

    def __init__(self, skip: int, width: int) -> None:
        super().__init__()
        self.attention = TaskAttention(width)
        self.decoder = _decoder(width + skip, width)

    def forward(self, first: Tensor, second: Tensor, skip: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(torch.cat([self.attention(first, second), skip], 1))
        return decoded


def _decoder(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(inputs, width), ResidualBlock(width, width))


class _Upsampling(nn.Module):
    """Convolutions of four sizes side by side, then PixelShuffle: `[B, C, H, W]` to `[B, C / 2, 2 H, 2 W]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels // 2, kernel, padding=kernel // 2) for kernel in (1, 3, 5, 7)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(torch.cat([conv(x) for conv in self.convs], 1), 2)


def _two(tasks: Mapping[str, Any]) -> tuple[str, str]:
    if len(tasks) != 2:
        raise ValueError(
            f"JTRL should be for two tasks: found {', '.join(tasks) or 'none'}; use PADNet, PAPNet or MTAN for more"
        )
    first, second = check_tasks(tasks, "JTRL")
    return first, second


def _widths(width: int, scales: int) -> list[int]:
    """Return the channels of the tasks' features from the coarsest scale to the finest."""
    if scales < 2:
        raise ValueError(
            f"channels of JTRL should have at least two entries, one for each scale: found {scales}; take more "
            "features from the backbone, or use HardSharing on one"
        )
    multiple = 2 ** (scales - 1)
    if width < 1 or width % multiple:
        raise ValueError(
            f"width should be a multiple of {multiple}, to be halved {scales - 1} times on the way through {scales} "
            f"scales: found {width}; give {max(round(width / multiple), 1) * multiple}, for example"
        )
    return [width // 2**scale for scale in range(scales)]


def _predictions(first: str, second: str, scales: int) -> dict[str, str]:
    """Return the task by the name of each prediction, in the order of the recursion."""
    steps = [f"_{scale}" for scale in range(1, scales)] + [""]
    predictions = {f"{task}{step}": task for step in steps for task in (first, second)}
    if len(predictions) < 2 * scales:
        raise ValueError(
            f"names of tasks should differ from those of intermediate predictions, <task>_1 to <task>_{scales - 1}: "
            f"found {first} and {second}; rename a task"
        )
    return predictions
