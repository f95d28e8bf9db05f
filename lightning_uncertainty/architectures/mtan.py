"""MTAN: every task attends to one backbone's features, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Any

from torch import Tensor, nn

from lightning_uncertainty.architectures._architecture import BranchingArchitecture, check_tasks
from lightning_uncertainty.architectures._backbone import Backbone, as_backbone, feature_list
from lightning_uncertainty.architectures._blocks import check_dimensions, check_made, conv_bn_relu
from lightning_uncertainty.architectures._mtan_attention import MTANAttention, carry
from lightning_uncertainty.architectures._paired_features import (
    Channels,
    by_stage,
    check_features,
    check_stages,
    run_stages,
    stage_channels,
)

__all__ = ["MTAN", "MTANAttention"]


class MTAN(BranchingArchitecture):
    """Multi-task attention network: one backbone, over which every task lays masks of its own.

    Stage by stage::

        stage j:  ... -> u_j --last block--> p_j -> ...              shared
                          |                   |
        task t:  e_t,j -> a_t,j ------------- · -> f, resize -> e_t,j+1

        a_t,j   = sigmoid(BN(W_2 * ReLU(BN(W_1 * [u_j; e_t,j]))))    see MTANAttention
        e_t,j+1 = pool(f_j+1(a_t,j · p_j))

    The first stage has no e, and the head takes what its task attends to at the last stage, `a · p`: there is one f
    fewer than stages. `pool` brings e to the size of u: by max pooling where the next stage is smaller,
    bilinearly and before f where it is larger, as in a decoder. If all masks were one, this would be hard sharing.

    Every f is shared by all tasks, although it lies behind the features at which tasks part. So where tasks' gradients
    are balanced at the features, f gets the plain sum of theirs, and `shared_parameters` has it.

    Source: Liu, Johns, Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019.

    Args:
        backbone: stages, or a module that returns the list of all features u_1, p_1, u_2, p_2, ...
        heads: by task; each takes `[B, C_p, h, w]` of the last stage, the decoder's where there is one.
        channels: of each stage, the decoder's after the backbone's. For a pair (C_u, C_p) a stage is an `nn.Sequential`
            with u before its last child and p after, both of one size, and a module returns both; for one number C a
            stage may be any module and a module returns one feature: it is u and p at once.
        decoder: stages that go on from the last p, as a rule to larger sizes.
        block: makes every f from channels in and out. The default, a 3x3 convolution with BatchNorm and ReLU, is for
            plain backbones such as SegNet's; `Bottleneck` is the paper's for ResNets.
        dense: names of the dense tasks; see `Architecture`.
        dimensions: of the features: 0 for vectors `[B, C]`, 1 for sequences, 2 for images, 3 for volumes.

    Attributes:
        attentions: each task's masks, one for each stage.
        blocks: every f.

    Raises:
        ValueError: there is no task or stage, a stage of a pair cannot be split, stages are not one for each entry of
            channels, a dense task is none of the tasks, or dimensions, or those of what block makes, are others; or, in
            the forward pass, features are not those that channels and dimensions say.

    Example:
        >>> import torch
        >>> stages = [
        ...     nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)),
        ...     nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)),
        ... ]
        >>> heads = {"depth": nn.Conv2d(16, 1, 1), "semantics": nn.Conv2d(16, 5, 1)}
        >>> net = MTAN(stages, heads, channels=[(8, 8), (16, 16)])
        >>> {task: list(prediction.shape) for task, prediction in net(torch.ones(2, 3, 33, 47)).items()}
        {'depth': [2, 1, 33, 47], 'semantics': [2, 5, 33, 47]}
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: Mapping[str, nn.Module],
        channels: Sequence[int | tuple[int, int]],
        *,
        decoder: Sequence[nn.Module] = (),
        block: Callable[[int, int], nn.Module] | None = None,
        dense: Collection[str] | None = None,
        dimensions: int = 2,
    ) -> None:
        check_dimensions(dimensions, "MTAN")
        super().__init__({task: task for task in check_tasks(heads, "MTAN")}, dense, dimensions)
        self.channels = stage_channels(channels)
        self.backbone = as_backbone(backbone)
        self.decoder = nn.ModuleList(decoder)
        check_stages(self.backbone, self.decoder, self.channels)
        p_channels = [stage[-1] for stage in self.channels]
        e_channels = [0, *p_channels[1:]]
        self.attentions = nn.ModuleDict(
            {
                task: nn.ModuleList(
                    MTANAttention(stage[0], stage[-1], e_channels=width, dimensions=dimensions)
                    for stage, width in zip(self.channels, e_channels, strict=True)
                )
                for task in heads
            }
        )
        make = partial(conv_bn_relu, dimensions=dimensions) if block is None else block
        self.blocks = nn.ModuleList(make(before, after) for before, after in pairwise(p_channels))
        check_made(self.blocks, dimensions, "block of MTAN")
        self.heads = nn.ModuleDict(heads)

    def features(self, inputs: Any) -> list[Tensor]:
        """Return the features that the tasks share, `[u_1, p_1, u_2, p_2, ...]`, the decoder's last.

        A feature that is both u and p stands there once. A sequence of all these features is returned as it is.
        """
        if isinstance(inputs, Sequence):
            features = feature_list(inputs)
        else:
            encoder = self.channels[: len(self.channels) - len(self.decoder)]
            features = self._encoded(inputs, encoder)
            check_features(features, encoder, self.dimensions)
            features += run_stages(self.decoder, features[-1], self.channels[len(encoder) :])
        check_features(features, self.channels, self.dimensions)
        return features

    def _encoded(self, images: Any, channels: Sequence[Channels]) -> list[Tensor]:
        if isinstance(self.backbone, nn.ModuleList):
            return run_stages(self.backbone, images, channels)
        return feature_list(self.backbone(images))

    def branch(self, task: str, features: Sequence[Tensor]) -> Tensor:
        stages = by_stage(features, self.channels)
        first, *later = self.attentions[task].children()
        u, p = stages[0]
        attended = first(u) * p
        for (u, p), attention, block in zip(stages[1:], later, self.blocks, strict=True):
            attended = attention(u, carry(attended, block, u.shape[2:])) * p
        prediction: Tensor = self.heads[task](attended)
        return prediction

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the backbone, of the decoder, and of every f."""
        return list(chain(self.backbone.parameters(), self.decoder.parameters(), self.blocks.parameters()))
