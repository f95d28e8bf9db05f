"""Networks trained apart, whose disagreement shows what one of them does not know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_uncertainty.predictions._modes import switched
from lightning_uncertainty.predictions._outputs import by_task

__all__ = ["DeepEnsemble"]


class DeepEnsemble(nn.Module):
    """Networks of one kind, trained from different initial weights on the same data.

    Source: Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles",
    NeurIPS 2017.

    Args:
        members: two networks or more, each from inputs to outputs by task.

    Raises:
        ValueError: there are fewer than two members, or one stands there twice: their agreement would mean nothing.

    Example:
        >>> class Net(nn.Linear):
        ...     def forward(self, inputs):
        ...         return {"depth": super().forward(inputs)}
        >>> ensemble = DeepEnsemble([Net(4, 1) for _ in range(5)])
        >>> ensemble.sample(torch.ones(2, 4))["depth"].shape
        torch.Size([5, 2, 1])
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        distinct = len({id(member) for member in members})
        if distinct < 2 or distinct < len(members):
            raise ValueError(
                f"DeepEnsemble should have two members or more, all different networks: found {len(members)}, "
                f"{distinct} of them different; train each from its own seed"
            )
        super().__init__()
        self.members = nn.ModuleList(members)

    @classmethod
    def from_checkpoints(cls, paths: Iterable[str | Path], load: Callable[[str | Path], nn.Module]) -> DeepEnsemble:
        """Return an ensemble of one member a checkpoint.

        Args:
            paths: of the checkpoints.
            load: from a path to a network with its weights, such as
                `partial(MultiTaskModule.load_from_checkpoint, backbone=backbone, tasks=tasks)`. Members are copies of
                what it returns, so that it may load into one network again and again.

        Raises:
            ValueError: there are fewer than two paths.

        Example:
            >>> net = nn.Linear(4, 1)
            >>> saved = {path: nn.Linear(4, 1).state_dict() for path in ("first.ckpt", "second.ckpt")}
            >>> def load(path):
            ...     net.load_state_dict(saved[path])
            ...     return net
            >>> len(DeepEnsemble.from_checkpoints(saved, load).members)
            2
        """
        return cls([deepcopy(load(path)) for path in paths])

    def sample(self, inputs: Any) -> dict[str, Tensor]:
        """Return what every member makes of the inputs in evaluation mode, without gradients: `[S, B, ...]` by task.

        Raises:
            ValueError: a member returns no outputs by task, or other tasks or shapes than the first one.
        """
        drawn: list[Mapping[str, Tensor]] = []
        self.draw_each(lambda member, outputs: drawn.append(outputs), inputs)
        return {task: torch.stack([outputs[task] for outputs in drawn]) for task in drawn[0]}

    def draw_each(self, take: Callable[[nn.Module, Mapping[str, Tensor]], None], inputs: Any) -> None:
        """Hand over each member and its outputs `[B, ...]` by task, one after the other; see `sample`.

        Args:
            take: is handed them.
            inputs: what every member takes.

        Raises:
            ValueError: as `sample`.
        """
        first: dict[str, torch.Size] = {}
        with torch.no_grad(), switched(self, trains=lambda part: False):
            for index, member in enumerate(self.members):
                outputs = by_task(member(inputs), f"member {index}")
                shapes = {task: output.shape for task, output in outputs.items()}
                first = first or shapes
                _check_alike(first, shapes, index)
                take(member, outputs)


def _check_alike(first: Mapping[str, torch.Size], other: Mapping[str, torch.Size], index: int) -> None:
    if first.keys() != other.keys():
        raise ValueError(
            f"members of DeepEnsemble should predict the same tasks: found {', '.join(first)} for member 0 and "
            f"{', '.join(other)} for member {index}; load checkpoints of one model"
        )
    for task, shape in first.items():
        if shape != other[task]:
            raise ValueError(
                f"members of DeepEnsemble should predict {task} in one shape: found {list(shape)} for member 0 "
                f"and {list(other[task])} for member {index}; load checkpoints of one model"
            )
