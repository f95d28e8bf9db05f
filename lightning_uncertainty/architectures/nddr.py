"""NDDR-CNN: a backbone for each task, 1x1 convolutions over the features of all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from lightning_uncertainty.architectures._blocks import batch_norm, check_dimensions, convolution, resize
from lightning_uncertainty.architectures._fused import FusedBackbones, Stages, check_alike, mixing_weights

__all__ = ["NDDR", "NDDRLayer"]


class NDDRLayer(nn.Module):
    """Neural discriminative dimensionality reduction: for each task, a 1x1 convolution over the features of all.

    `y_i = ReLU(BN_i(W_i [x_1; ...; x_T]))`, features concatenated in the order of the tasks, W_i without a bias.

    At the start W_i is `alpha I` on the block of task i and `beta I` on the others, and BN's running statistics move
    by 0.05 a step.

    Source: Gao, Ma, Zhao, Liu, Yuille, "NDDR-CNN: Layerwise Feature Fusing in Multi-Task CNNs by Neural Discriminative
    Dimensionality Reduction", CVPR 2019.

    Args:
        tasks: T, at least 2.
        channels: C.
        alpha: weight of a task's own features at the start.
        beta: weight of each other task's; where None `(1 - alpha) / (T - 1)`, so that weights sum to one: 0.1 for two
            tasks, as in the paper.
        dimensions: of the features: 0 for vectors `[B, C]`, 1 for sequences, 2 for images, 3 for volumes.

    Attributes:
        layers: each task's convolution, BatchNorm and ReLU.

    Raises:
        ValueError: there are fewer than two tasks, or dimensions are others; or, in the forward pass, features are not
            T of one shape `[B, C, H, W]`, or `[B, C, ...]` with those dimensions.

    Example:
        >>> layer = NDDRLayer(tasks=2, channels=1).eval()
        >>> depth, semantics = layer([torch.full((1, 1, 1, 1), 10.0), torch.full((1, 1, 1, 1), 20.0)])
        >>> round(depth.item(), 2), round(semantics.item(), 2)
        (11.0, 19.0)
    """

    def __init__(
        self, tasks: int, channels: int, *, alpha: float = 0.9, beta: float | None = None, dimensions: int = 2
    ) -> None:
        super().__init__()
        self.channels = channels
        self.dimensions = check_dimensions(dimensions, "NDDRLayer")
        weights = mixing_weights(tasks, alpha, beta)
        self.layers = nn.ModuleList(reduction(row, channels, dimensions) for row in weights)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return T features `[B, C, H, W]` for T features `[B, C, H, W]`."""
        check_alike(features, range(len(self.layers)), self.channels, dimensions=self.dimensions)
        concatenated = torch.cat(tuple(features), dim=1)
        return [layer(concatenated) for layer in self.layers]


def reduction(weights: Tensor, channels: int, dimensions: int) -> nn.Sequential:
    """Return `[B, T C, H, W]` to `[B, C, H, W]`, at the start the sum of T blocks by weights `[T]`."""
    mixing = convolution(dimensions, len(weights) * channels, channels, bias=False)
    with torch.no_grad():
        kernel = mixing.get_parameter("weight")
        kernel.copy_(torch.kron(weights[None], torch.eye(channels)).view_as(kernel))
    return nn.Sequential(mixing, batch_norm(dimensions, channels, momentum=0.05), nn.ReLU(inplace=True))


class NDDR(FusedBackbones):
    """A backbone for every task; after each stage every task goes on with 1x1 convolutions of all tasks' features.

    The wiring::

        x_A --stage 0--+--[layer 0]--+--stage 1--+--[layer 1]--+-- ... -- head_A
        x_B --stage 0--+             +--stage 1--+             +-- ... -- head_B

    See `NDDRLayer` for the formula. The paper starts from backbones that were trained each on its task alone, and
    gives the layers, `net.fusions`, a learning rate of a hundred times the others' under SGD.

    With `shortcut` (NDDR-CNN-Shortcut) a head takes all of its task's layers: their features are resized bilinearly to
    the last one's size, concatenated, and go through a 1x1 convolution. Neither BatchNorm nor ReLU follows: what it
    sums has been through both, and the head sees features of either sign.

    Source: Gao, Ma, Zhao, Liu, Yuille, "NDDR-CNN: Layerwise Feature Fusing in Multi-Task CNNs by Neural Discriminative
    Dimensionality Reduction", CVPR 2019.

    Args:
        backbones: stages of which every task gets a copy, or each task's own by its name.
        heads: by task, at least two; each takes features `[B, C, h, w]` with the channels and size of the last stage.
        channels: of the features that each stage returns.
        shortcut: whether heads take all layers rather than the last.
        alpha: weight of a task's own features at the start; the others share `1 - alpha`.
        dense: names of the dense tasks; see `Architecture`.
        dimensions: of the features: 0 for vectors `[B, C]`, 1 for sequences, 2 for images, 3 for volumes.

    Attributes:
        backbones: each task's stages.
        fusions: the layers, one for each stage.
        shortcuts: each task's convolution over all layers; empty without `shortcut`.

    Raises:
        ValueError: there are fewer than two tasks; backbones are for other tasks than heads, are no stages, share
            parameters, or their stages are not one for each entry of channels; a dense task is none of the tasks;
            dimensions are others than those; or, in the forward pass, features of a stage differ in shape or have
            other channels or dimensions.

    Example:
        >>> stages = [nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 16, 3, stride=2)]
        >>> heads = {"depth": nn.Conv2d(16, 1, 1), "semantics": nn.Conv2d(16, 5, 1)}
        >>> net = NDDR(stages, heads, channels=[8, 16])
        >>> {task: list(prediction.shape) for task, prediction in net(torch.ones(2, 3, 33, 47)).items()}
        {'depth': [2, 1, 33, 47], 'semantics': [2, 5, 33, 47]}
    """

    def __init__(
        self,
        backbones: Stages | Mapping[str, Stages],
        heads: Mapping[str, nn.Module],
        channels: Sequence[int],
        *,
        shortcut: bool = False,
        alpha: float = 0.9,
        dense: Collection[str] | None = None,
        dimensions: int = 2,
    ) -> None:
        def layer(width: int) -> NDDRLayer:
            return NDDRLayer(len(heads), width, alpha=alpha, dimensions=dimensions)

        check_dimensions(dimensions, "NDDR")
        super().__init__(backbones, heads, channels, layer, dense, dimensions)
        self.shortcuts = nn.ModuleDict(
            {task: convolution(dimensions, sum(channels), channels[-1]) for task in heads} if shortcut else {}
        )

    def head_inputs(self, fused: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        last = super().head_inputs(fused)
        if not self.shortcuts:
            return last
        size = last[0].shape[2:]
        by_task = zip(*fused, strict=True)
        return [
            convolution(torch.cat([resize(x, size) for x in stages], dim=1))
            for convolution, stages in zip(self.shortcuts.values(), by_task, strict=True)
        ]

    def shared_parameters(self) -> list[nn.Parameter]:
        # Not of the last layer: nothing of a task's own convolution in it reaches another task.
        return list(chain(self.backbones.parameters(), self.fusions[:-1].parameters()))
