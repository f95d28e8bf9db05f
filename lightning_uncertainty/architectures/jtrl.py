"""Joint task-recursive learning: two tasks decode in turns, each from what the other has just found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_uncertainty.architectures._architecture import Architecture, check_all_dense, check_tasks
from lightning_uncertainty.architectures._backbone import Backbone, as_backbone, check_channels, features_of
from lightning_uncertainty.architectures._blocks import ResidualBlock, check_dimensions, convolution, resize
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

    Both tasks are dense: they hand each other their features place by place. One that predicts something for the whole
    input needs a head of its own beside the architecture, `Task(..., head=...)`.

    Every step has a 1x1 prediction. Those of the last scale bear the tasks' names, those before it `<task>_1`,
    `<task>_2`, ...: `depth_1`, `depth_2`, `depth_3`, `depth` with four scales, as in the paper.

    Source: Zhang et al., "Joint Task-Recursive Learning for Semantic Segmentation and Depth Estimation", ECCV 2018.
    There depth comes first, and its loss is `berhu`.

    Args:
        backbone: a module, or stages; its features run from the finest to the coarsest.
        channels: of each of the features, two or more: there are as many scales.
        outputs: channels of the prediction by task; the first task decodes first.
        width: channels of the tasks' features at the coarsest scale, halved at every scale after it.
        dense: names of the dense tasks (see `Architecture`), which should be both.
        dimensions: of the features: 1 for sequences `[B, C, l]`, 2 for images, 3 for volumes. There convolutions of 7
            voxels have 343 weights where an image's have 49: take a small width.

    Raises:
        ValueError: there are not two tasks, there are fewer than two scales, width cannot be halved often enough, a
            task has the name of another's prediction or is not dense, dimensions are others than those; in the forward
            pass, the features do not have these channels or dimensions.

    Example:
        >>> stages = [nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 16, 3, stride=2)]
        >>> net = JTRL(stages, [8, 16], {"depth": 1, "semantics": 5}, width=16)
        >>> {name: list(prediction.shape) for name, prediction in net(torch.ones(2, 3, 33, 47)).items()}
        {'depth_1': [2, 1, 33, 47], 'semantics_1': [2, 5, 33, 47], 'depth': [2, 1, 33, 47], 'semantics': [2, 5, 33, 47]}
    """

    def __init__(
        self,
        backbone: Backbone,
        channels: Sequence[int],
        outputs: Mapping[str, int],
        *,
        width: int = 256,
        dense: Collection[str] | None = None,
        dimensions: int = 2,
    ) -> None:
        first, second = _two(outputs)
        scales = len(channels)
        check_dimensions(dimensions, "JTRL", at_least=1)
        widths = _widths(width, scales, dimensions)
        super().__init__(_predictions(first, second, scales), outputs if dense is None else dense, dimensions)
        check_all_dense(self, "tasks attend to each other's features place by place")
        self.channels = tuple(channels)
        self.backbone = as_backbone(backbone)
        coarsest, *finer = zip(reversed(self.channels), widths, strict=True)
        self.start = _FirstScale(*coarsest, dimensions)
        self.scales = nn.ModuleList(_Scale(skip, width, dimensions) for skip, width in finer)
        convolutions = [convolution(dimensions, width, outputs[task]) for width in widths for task in (first, second)]
        self.heads = nn.ModuleDict(dict(zip(self.predictions, convolutions, strict=True)))

    def features(self, inputs: Any) -> list[Tensor]:
        return features_of(self.backbone, inputs)

    def predict(self, inputs: Any) -> dict[str, Tensor]:
        features = self.features(inputs)
        check_channels(features, self.channels, self.dimensions)
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

    def __init__(self, skip: int, width: int, dimensions: int) -> None:
        super().__init__()
        self.first = _decoder(skip, width, dimensions)
        self.second = _decoder(width + skip, width, dimensions)

    def forward(self, skip: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(skip)
        return first, self.second(torch.cat([first, skip], 1))


class _Scale(nn.Module):
    """Both tasks' steps at a finer scale, from their features at the one before, twice as wide."""

    def __init__(self, skip: int, width: int, dimensions: int) -> None:
        super().__init__()
        self.upsampling = nn.ModuleList(_Upsampling(2 * width, dimensions) for _ in range(2))
        self.first = _Step(skip, width, dimensions)
        self.second = _Step(skip, width, dimensions)

    def forward(self, first: Tensor, second: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        size = skip.shape[2:]
        first, second = (resize(up(x), size) for up, x in zip(self.upsampling, (first, second), strict=True))
        first = self.first(first, second, skip)
        return first, self.second(first, second, skip)


class _Step(nn.Module):
    """Attend to both tasks, join what the backbone has, decode: `[B, C, H, W]` of either to the same of one."""

    def __init__(self, skip: int, width: int, dimensions: int) -> None:
        super().__init__()
        self.attention = TaskAttention(width, dimensions)
        self.decoder = _decoder(width + skip, width, dimensions)

    def forward(self, first: Tensor, second: Tensor, skip: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(torch.cat([self.attention(first, second), skip], 1))
        return decoded


def _decoder(inputs: int, width: int, dimensions: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(inputs, width, dimensions), ResidualBlock(width, width, dimensions))


class _Upsampling(nn.Module):
    """Convolutions of four sizes side by side, then PixelShuffle: `[B, C, H, W]` to `[B, C / 2, 2 H, 2 W]`."""

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        quarter = channels // 2 * 2**dimensions // 4  # of what the shuffle takes
        self.convs = nn.ModuleList(convolution(dimensions, channels, quarter, kernel) for kernel in (1, 3, 5, 7))

    def forward(self, x: Tensor) -> Tensor:
        return shuffle(torch.cat([conv(x) for conv in self.convs], 1))


def shuffle(x: Tensor) -> Tensor:
    """Return channels as places, in every dimension twice as many: what PixelShuffle is to images.

    `[B, C * 2, L]` to `[B, C, 2 L]`, `[B, C * 4, H, W]` to `[B, C, 2 H, 2 W]`, `[B, C * 8, D, H, W]` likewise.
    """
    size = x.shape[2:]
    count = len(size)
    x = x.reshape(len(x), -1, *[2] * count, *size)
    pairs = [axis for k in range(count) for axis in (2 + count + k, 2 + k)]
    return x.permute(0, 1, *pairs).reshape(*x.shape[:2], *(2 * length for length in size))


def _two(tasks: Mapping[str, Any]) -> tuple[str, str]:
    if len(tasks) != 2:
        raise ValueError(
            f"JTRL should be for two tasks: found {', '.join(tasks) or 'none'}; use PADNet, PAPNet or MTAN for more"
        )
    first, second = check_tasks(tasks, "JTRL")
    return first, second


def _widths(width: int, scales: int, dimensions: int) -> list[int]:
    """Return the channels of the tasks' features from the coarsest scale to the finest."""
    if scales < 2:
        raise ValueError(
            f"channels of JTRL should have at least two entries, one for each scale: found {scales}; take more "
            "features from the backbone, or use HardSharing on one"
        )
    multiple = 2 ** (scales - 1 + (dimensions == 1))  # a sequence is enlarged by convolutions of a quarter of the width
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
