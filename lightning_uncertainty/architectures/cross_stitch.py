"""Cross-stitch networks: a backbone for each task, linear mixtures between them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from itertools import chain

import torch
from torch import Tensor, nn

from lightning_uncertainty.architectures._fused import FusedBackbones, Stages, check_alike, mixing_weights

__all__ = ["CrossStitch", "CrossStitchUnit"]


class CrossStitchUnit(nn.Module):
    """A learned linear mixture of the tasks' features, for each task its own.

    `y_i = sum_j alpha[i, j] * x_j`, with `alpha[i, j]` a number for each channel, or one for all of them.

    At the start `alpha[i, i]` is `self_weight` and the others share the rest, so every row sums to one; later it need
    not. The mixture is computed in the precision of alpha and returned in that of the features.

    Source: Misra, Shrivastava, Gupta, Hebert, "Cross-stitch Networks for Multi-task Learning", CVPR 2016.

    Args:
        tasks: T, at least 2.
        channels: C, for a number for each channel; None for one for all of them.
        self_weight: of a task's own features at the start; 1 leaves them as they are.

    Attributes:
        alpha: `[T, T, C]`, or `[T, T, 1]`: task mixed for, task mixed in, channel.

    Raises:
        ValueError: there are fewer than two tasks; or, in the forward pass, features are not T of one shape
            `[B, C, ...]`.

    Example:
        >>> unit = CrossStitchUnit(tasks=2, channels=1)
        >>> depth, semantics = unit([torch.tensor([[10.0]]), torch.tensor([[20.0]])])
        >>> depth.item(), semantics.item()
        (11.0, 19.0)
    """

    def __init__(self, tasks: int, channels: int | None, *, self_weight: float = 0.9) -> None:
        super().__init__()
        self.channels = channels
        self.alpha = nn.Parameter(mixing_weights(tasks, self_weight)[..., None].repeat(1, 1, channels or 1))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return T mixtures `[B, C, ...]` of T features `[B, C, ...]`."""
        check_alike(features, range(len(self.alpha)), self.channels)
        return [mixture(features, weights) for weights in self.alpha]


def mixture(features: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return `sum_j weights[j] * features[j]`: weights `[T, C]` or `[T, 1]` of features `[B, C, ...]`."""
    # Not einsum: a product for each task keeps the memory format, and stages may work in place on what they get.
    weights = weights.reshape(*weights.shape, *[1] * (features[0].dim() - 2))
    terms = [weight * x for weight, x in zip(weights, features, strict=True)]
    mixed: Tensor = reduce(torch.add, terms)
    return mixed.to(features[0].dtype)


class CrossStitch(FusedBackbones):
    """A backbone for every task; after each stage every task goes on with a mixture of all tasks' features.

    The wiring::

        x_A --stage 0--+--[unit 0]--+--stage 1--+--[unit 1]--+-- ... -- head_A
        x_B --stage 0--+            +--stage 1--+            +-- ... -- head_B

    See `CrossStitchUnit` for the formula. The paper starts from backbones that were trained each on its task alone,
    and gives the units, `net.fusions`, a learning rate of a hundred times the others' under SGD::

        SGD([{"params": net.fusions.parameters(), "lr": 0.1},
             {"params": [*net.backbones.parameters(), *net.heads.parameters()]}], lr=0.001)

    Source: Misra, Shrivastava, Gupta, Hebert, "Cross-stitch Networks for Multi-task Learning", CVPR 2016.

    Args:
        backbones: stages of which every task gets a copy, or each task's own by its name.
        heads: by task, at least two; each takes its task's last mixture `[B, C, h, w]`.
        channels: of the features that each stage returns.
        per_channel: whether units have a number for each channel, rather than one for all of them.
        self_weight: of a task's own features at the start.
        dense: names of the dense tasks; see `Architecture`.

    Attributes:
        backbones: each task's stages.
        fusions: the units, one for each stage.

    Raises:
        ValueError: there are fewer than two tasks; backbones are for other tasks than heads, are no stages, share
            parameters, or their stages are not one for each entry of channels; a dense task is none of the tasks; or,
            in the forward pass, features of a stage differ in shape or have other channels.

    Example:
        >>> stages = [nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 16, 3, stride=2)]
        >>> heads = {"depth": nn.Conv2d(16, 1, 1), "semantics": nn.Conv2d(16, 5, 1)}
        >>> net = CrossStitch(stages, heads, channels=[8, 16])
        >>> {task: list(prediction.shape) for task, prediction in net(torch.ones(2, 3, 33, 47)).items()}
        {'depth': [2, 1, 33, 47], 'semantics': [2, 5, 33, 47]}
    """

    def __init__(
        self,
        backbones: Stages | Mapping[str, Stages],
        heads: Mapping[str, nn.Module],
        channels: Sequence[int],
        *,
        per_channel: bool = True,
        self_weight: float = 0.9,
        dense: Collection[str] | None = None,
    ) -> None:
        def unit(width: int) -> CrossStitchUnit:
            return CrossStitchUnit(len(heads), width if per_channel else None, self_weight=self_weight)

        super().__init__(backbones, heads, channels, unit, dense)

    def shared_parameters(self) -> list[nn.Parameter]:
        # Of the last unit too: one tensor holds the rows of all tasks.
        return list(chain(self.backbones.parameters(), self.fusions.parameters()))
