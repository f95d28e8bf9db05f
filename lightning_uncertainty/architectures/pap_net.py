"""PAP-Net: tasks share which pixels resemble each other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_uncertainty.architectures._architecture import check_all_dense, check_tasks
from lightning_uncertainty.architectures._backbone import Backbone
from lightning_uncertainty.architectures._blocks import check_dimensions, convolution, resize
from lightning_uncertainty.architectures._two_stage import TwoStageArchitecture

__all__ = ["PAPNet", "Propagation", "affinity", "diffuse", "mix"]


def affinity(x: Tensor) -> Tensor:
    """Return how much pixels resemble each other: `softmax(X̂ X̂ᵀ)`, X̂ the features of unit length; rows sum to 1.

    Args:
        x: features `[..., n, C]` of n pixels.

    Returns:
        `[..., n, n]`.

    Example:
        >>> affinity(torch.tensor([[3.0, 0.0], [5.0, 0.0]])).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    unit = F.normalize(x, dim=-1)
    return (unit @ unit.mT).softmax(-1)


def mix(affinities: Tensor, weights: Tensor) -> Tensor:
    """Return the affinities of every task from those of all: `M̂_t = Σ_i α_{t,i} M_i`.

    Args:
        affinities: M, `[..., T, n, n]`.
        weights: α, `[T, T]`; rows sum to 1.
    """
    # expanded, since a broadcast product would keep a copy of the affinities
    mixed = weights.expand(*affinities.shape[:-2], -1) @ affinities.flatten(-2)
    return mixed.reshape(affinities.shape)


def diffuse(x: Tensor, affinity: Tensor, beta: float = 0.05, iterations: int = 3) -> Tensor:
    """Return features after steps `H <- β M̂ H + (1 - β) X` from `H = X`, on the way to `(1 - β) (1 - β M̂)⁻¹ X`.

    Args:
        x: features X, `[..., n, C]`, of n pixels.
        affinity: M̂, `[..., n, n]`; rows sum to 1.
        beta: how much comes from other pixels, in [0, 1).
        iterations: number of steps.

    Example:
        >>> diffuse(torch.tensor([[1.0], [0.0]]), torch.full((2, 2), 0.5), beta=0.5, iterations=1).tolist()
        [[0.75], [0.25]]
    """
    h = x
    for _ in range(iterations):
        h = beta * (affinity @ h) + (1 - beta) * x
    return h


class Propagation(nn.Module):
    """Diffuse the features of every task along affinities that it mixes from those of all tasks.

    `M_t = affinity(X_t)`, `M̂_t = Σ_i α_{t,i} M_i` and `X_t <- diffuse(X_t, M̂_t)`, where `α = softmax(logits)` is
    learnt, and uniform at first.

    Both M and M̂ are kept for the gradient: 2 T B n² floats for n pixels, 200 MB in float32 for 3 tasks, 8 images and
    32 x 32 pixels, and 64 times as much at twice the height and four times the width. So where an image has more
    pixels than `max_pixels`, affinities are those of its averages over s x s pixels, s as small as will do, and what
    diffusion changes there is added to the features, linearly enlarged. Pixels may be steps of a sequence or voxels of
    a volume, too: s, or s x s x s, are averaged there.

    Source: Zhang et al., "Pattern-Affinitive Propagation across Depth, Surface Normal and Semantic Segmentation",
    CVPR 2019; averages of pixels are not in the paper.

    Args:
        tasks: how many, T.
        beta: how much comes from other pixels in a step, in [0, 1).
        iterations: number of steps.
        max_pixels: the most pixels between which affinities are computed.

    Attributes:
        logits: `[T, T]`, zero at first; rows are the tasks that take, columns those that give.

    Raises:
        ValueError: there are fewer than two tasks, or a number is out of its range.

    Shape:
        `[B, T, C, h, w]` to the same; `[B, T, C, l]` and `[B, T, C, d, h, w]` likewise.

    Example:
        >>> propagation = Propagation(2, max_pixels=100)
        >>> list(propagation(torch.ones(4, 2, 16, 9, 13)).shape), propagation.weights().tolist()
        ([4, 2, 16, 9, 13], [[0.5, 0.5], [0.5, 0.5]])
    """

    def __init__(self, tasks: int, *, beta: float = 0.05, iterations: int = 3, max_pixels: int = 1024) -> None:
        super().__init__()
        if tasks < 2:
            raise ValueError(f"tasks should be at least 2: found {tasks}; affinities are mixed across tasks")
        if not 0 <= beta < 1:
            raise ValueError(f"beta should be in [0, 1): found {beta}")
        if iterations < 1 or max_pixels < 1:
            raise ValueError(f"iterations and max_pixels should be positive: found {iterations} and {max_pixels}")
        self.beta, self.iterations, self.max_pixels = beta, iterations, max_pixels
        self.logits = nn.Parameter(torch.zeros(tasks, tasks))

    def weights(self) -> Tensor:
        """Return α, `[T, T]`: what a task, in its row, takes of the affinities of each."""
        return self.logits.softmax(-1)

    def forward(self, features: Tensor) -> Tensor:
        size = features.shape[3:]
        stride = _stride(size, self.max_pixels)
        small = _averages(features.flatten(0, 1), stride)
        x = small.flatten(2).mT.reshape(*features.shape[:2], -1, features.shape[2])
        diffused = diffuse(x, mix(affinity(x), self.weights()), self.beta, self.iterations)
        change = (diffused - x).flatten(0, 1).mT.reshape(small.shape)
        enlarged = resize(change, [stride * length for length in small.shape[2:]])  # each average where its pixels lie
        for axis, length in enumerate(size, start=2):
            enlarged = enlarged.narrow(axis, 0, length)
        return features + enlarged.reshape(features.shape)


_AVERAGES: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _averages(x: Tensor, stride: int) -> Tensor:
    """Return the averages over s x s pixels; in float32 at least, which those of voxels need on a CPU."""
    if stride == 1:
        return x
    window = [min(stride, length) for length in x.shape[2:]]  # which that of voxels does not cut by itself
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    averages: Tensor = _AVERAGES[len(window)](precise, window, ceil_mode=True)
    return averages.to(x.dtype)


def _stride(size: Sequence[int], max_pixels: int) -> int:
    """Return the smallest s such that the averages over s x s pixels of an image number at most `max_pixels`."""
    stride = 1
    while prod([-(-length // stride) for length in size]) > max_pixels:
        stride += 1
    return stride


class PAPNet(TwoStageArchitecture):
    """Every task predicts from features of its own; affinities of all tasks then smooth these, and it predicts again.

    The wiring::

        backbone -> F_t -> <task>_initial               F_t: two bottlenecks; initial: a 1x1 convolution
                     |
                     +-> X_t -> Propagation -> head_t -> <task>          X_t: a 1x1 convolution to width / 2
                                    |
                           affinities of all tasks

    All tasks are dense: what they share is which places resemble each other. One that predicts something for the whole
    input has no such pattern; give it a head of its own beside the architecture, `Task(..., head=...)`.

    The paper trains the affinities by a pair-wise loss, too, that holds them against those of the labels. It is left
    out here: losses are those of predictions alone, and the affinities learn through the final ones.

    Source: Zhang et al., "Pattern-Affinitive Propagation across Depth, Surface Normal and Semantic Segmentation",
    CVPR 2019.

    Args:
        backbone: a module, or stages.
        channels: of its last features `[B, channels, h, w]`.
        outputs: channels of the predictions by task, at least two tasks.
        width: channels of the features F of every task, even.
        heads: by task, from `[B, width / 2, h, w]`; the others get a 3x3 convolution with BatchNorm and ReLU, then a
            1x1 convolution.
        propagation: makes the propagation from the number of tasks; `partial(Propagation, max_pixels=4096)` allows
            for finer affinities, at their cost.
        dense: names of the dense tasks (see `Architecture`), which should be all.
        dimensions: of the features: 1 for sequences `[B, channels, l]`, 2 for images, 3 for volumes.

    Raises:
        ValueError: there are fewer than two tasks, width is odd, predictions would share a name, a head is for no
            task, a task is not dense, dimensions are others than those; or, in the forward pass, the backbone returns
            other channels or dimensions.

    Example:
        >>> net = PAPNet(nn.Conv2d(3, 8, 3, stride=4), 8, {"depth": 1, "normals": 3}, width=8)
        >>> {name: list(prediction.shape) for name, prediction in net(torch.ones(2, 3, 33, 47)).items()}
        ... # doctest: +NORMALIZE_WHITESPACE
        {'depth': [2, 1, 33, 47], 'normals': [2, 3, 33, 47],
         'depth_initial': [2, 1, 33, 47], 'normals_initial': [2, 3, 33, 47]}
    """

    def __init__(
        self,
        backbone: Backbone,
        channels: int,
        outputs: Mapping[str, int],
        *,
        width: int = 256,
        heads: Mapping[str, nn.Module] | None = None,
        propagation: Callable[[int], nn.Module] = Propagation,
        dense: Collection[str] | None = None,
        dimensions: int = 2,
    ) -> None:
        check_tasks(outputs, "PAPNet", at_least=2)
        check_dimensions(dimensions, "PAPNet", at_least=1)
        if width % 2:
            raise ValueError(f"width should be even: found {width}; affinities are between features of half the width")
        super().__init__(backbone, channels, outputs, {}, width, dense, dimensions)
        check_all_dense(self, "affinities are between places of dense tasks")
        self.halves = nn.ModuleDict({task: convolution(dimensions, width, width // 2) for task in outputs})
        self.propagation = propagation(len(outputs))
        self.heads = self.final_heads(outputs, width // 2, heads)

    def exchange(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = torch.stack([half(features[task]) for task, half in self.halves.items()], dim=1)
        return dict(zip(self.tasks, self.propagation(x).unbind(1), strict=True))

    def shared_parameters(self) -> list[nn.Parameter]:
        shared = [self.backbone, self.task_features, self.halves, self.propagation]
        return [parameter for module in shared for parameter in module.parameters()]
