"""A backbone for every task, fused with the others after each stage."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_uncertainty.architectures._architecture import Architecture, check_tasks
from lightning_uncertainty.architectures._backbone import as_backbone, check_feature

__all__ = ["FusedBackbones", "Stages", "check_alike", "mixing_weights"]

Stages = Sequence[nn.Module] | nn.ModuleList | nn.Sequential


class FusedBackbones(Architecture):
    """A backbone for every task; after every stage, the last included, a fusion gives each a mixture of all.

    The wiring::

        x_A --stage 0--+--[fusion 0]--+--stage 1--+--[fusion 1]--+-- ... -- head_A
        x_B --stage 0--+              +--stage 1--+              +-- ... -- head_B

    Args:
        backbones: stages that are copied for each task, or each task's own by its name.
        heads: by task; each takes its task's last fused features `[B, C, h, w]`.
        channels: of each stage.
        fusion: makes, from a stage's channels, a module that takes the tasks' features in order and returns as many.
        dense: names of the dense tasks; see `Architecture`.
        places: dimensions of the features; any where None.

    Raises:
        ValueError: there are fewer than two tasks; backbones are for other tasks than heads, are no stages, share
            parameters, or their stages are not one for each entry of channels; a dense task is none of the tasks; or,
            in the forward pass, features of a stage differ in shape or have other channels.
    """

    def __init__(
        self,
        backbones: Stages | Mapping[str, Stages],
        heads: Mapping[str, nn.Module],
        channels: Sequence[int],
        fusion: Callable[[int], nn.Module],
        dense: Collection[str] | None = None,
        places: int | None = None,
    ) -> None:
        tasks = check_tasks(heads, type(self).__name__, at_least=2)
        super().__init__({task: task for task in tasks}, dense, 2 if places is None else places)
        self.channels = tuple(channels)
        self.places = places
        self.backbones = stages_by_task(backbones, tasks, self.channels)
        self.fusions = nn.ModuleList(fusion(width) for width in self.channels)
        self.heads = nn.ModuleDict(heads)

    @abstractmethod
    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all backbones and of those fusions on which several tasks depend."""

    def fused(self, inputs: Any) -> list[list[Tensor]]:
        """Return the fused features of each stage, by task in the order of the heads."""
        tasks = tuple(self.predictions)
        backbones = [cast(nn.ModuleList, stages) for stages in self.backbones.values()]
        features = [inputs] * len(tasks)
        fused = []
        for stage, fusion in enumerate(self.fusions):
            features = [stages[stage](x) for stages, x in zip(backbones, features, strict=True)]
            check_alike(features, tasks, self.channels[stage], f"features of stage {stage}", self.places)
            features = fusion(features)
            fused.append(features)
        return fused

    def head_inputs(self, fused: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """Return what each head is given of the fused features: the last."""
        return fused[-1]

    def predict(self, inputs: Any) -> dict[str, Tensor]:
        features = self.head_inputs(self.fused(inputs))
        return {task: self.heads[task](x) for task, x in zip(self.predictions, features, strict=True)}


def stages_by_task(
    backbones: Stages | Mapping[str, Stages], tasks: Sequence[str], channels: Sequence[int]
) -> nn.ModuleDict:
    """Return each task's own stages, in the order of tasks; a sequence is copied for each.

    Raises:
        ValueError: see `FusedBackbones`.
    """
    if not isinstance(backbones, Mapping):
        stages = stage_list(backbones)
        by_task = nn.ModuleDict({task: copy.deepcopy(stages) for task in tasks})
    elif set(backbones) == set(tasks):
        by_task = nn.ModuleDict({task: stage_list(backbones[task]) for task in tasks})
    else:
        raise ValueError(
            f"backbones should be for the tasks of the heads, {', '.join(tasks)}: found "
            f"{', '.join(backbones) or 'none'}; name the same tasks"
        )
    counts = {task: len(cast(nn.ModuleList, by_task[task])) for task in tasks}
    if set(counts.values()) != {len(channels)}:
        found = ", ".join(f"{count} for {task}" for task, count in counts.items())
        raise ValueError(
            f"every task should have {len(channels)} stages, one for each entry of channels {list(channels)}: found "
            f"{found}; correct channels, or the stages"
        )
    if sum(len(list(own.parameters())) for own in by_task.values()) > len(list(by_task.parameters())):
        raise ValueError(
            "every task should have parameters of its own: found stages that stand for several tasks; give the stages "
            "once, as a sequence, and each task has a copy"
        )
    return by_task


def stage_list(backbone: Stages) -> nn.ModuleList:
    """Return stages as a module.

    Raises:
        ValueError: they are a module that does not list its stages, or no modules.
    """
    if isinstance(backbone, nn.Module) and not isinstance(backbone, nn.ModuleList | nn.Sequential):
        raise ValueError(
            f"a backbone should be a sequence of stages, to be fused after each: found {type(backbone).__name__}; list "
            "its stages, as in [nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool), net.layer1, net.layer2]"
        )
    return cast(nn.ModuleList, as_backbone(list(backbone)))


def check_alike(
    features: Sequence[Tensor],
    tasks: Sequence[Any],
    channels: int | None,
    what: str = "features",
    dimensions: int | None = None,
) -> None:
    """Look whether there are features `[B, channels, ...]` of one shape for every task.

    Raises:
        ValueError: their number, their shapes or, unless None, their channels or dimensions differ.
    """
    if len(features) != len(tasks):
        raise ValueError(f"{what} should be one tensor for each of {len(tasks)} tasks: found {len(features)}")
    first = features[0]
    for task, x in zip(tasks, features, strict=True):
        if channels is not None:
            check_feature(x, channels, dimensions, f"{what} for task {task}")
        if x.shape != first.shape:
            raise ValueError(
                f"{what} should have one shape for all tasks: found {list(first.shape)} for task {tasks[0]} and "
                f"{list(x.shape)} for task {task}; give backbones whose stages end alike"
            )


def mixing_weights(tasks: int, own: float, other: float | None = None) -> Tensor:
    """Return weights `[T, T]` of every task's features in every other's: `own` on the diagonal, `other` elsewhere.

    Args:
        tasks: T.
        own: a task's weight in its own mixture.
        other: where None `(1 - own) / (T - 1)`, so that rows sum to one.

    Raises:
        ValueError: there are fewer than two tasks.
    """
    if tasks < 2:
        raise ValueError(f"a fusion should be of at least 2 tasks: found {tasks}")
    other = (1 - own) / (tasks - 1) if other is None else other
    return torch.full((tasks, tasks), other).fill_diagonal_(own)
