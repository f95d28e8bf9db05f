"""Heads of tasks that no architecture knows, beside one, on the features that its tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_uncertainty.architectures._architecture import Architecture, BranchingArchitecture, check_tasks

__all__ = ["with_heads"]


def with_heads(net: Architecture, heads: Mapping[str, nn.Module]) -> Architecture:
    """Return an architecture with further tasks, each with a head of its own on the last of the shared features.

    `MultiTaskModule` does so with tasks that own heads. What a head returns is left as it is.

    Args:
        net: an architecture with features that all its tasks share: any but `CrossStitch` and `NDDR`.
        heads: by task; each takes the last of the features.

    Returns:
        A `BranchingArchitecture` if `net` is one.

    Raises:
        ValueError: a task is one of the architecture's, or the architecture has no such features.

    Example:
        >>> import torch
        >>> from lightning_uncertainty.architectures import PAPNet
        >>> net = PAPNet(nn.Conv2d(3, 8, 3, stride=4), 8, {"depth": 1, "normals": 3}, width=8)
        >>> kind = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        >>> outputs = with_heads(net, {"kind": kind})(torch.ones(2, 3, 33, 47))
        >>> list(outputs["depth"].shape), list(outputs["kind"].shape)
        ([2, 1, 33, 47], [2, 5])
    """
    if twice := [task for task in check_tasks(heads, "heads") if task in net.predictions]:
        raise ValueError(
            f"heads beside {type(net).__name__} should be of other tasks than its own: found {', '.join(twice)}; leave "
            "their heads out, or those tasks out of the architecture"
        )
    if type(net).features is Architecture.features:
        net.features(None)  # says why there are none
    return BranchingWithHeads(net, heads) if isinstance(net, BranchingArchitecture) else WithHeads(net, heads)


class _Beside(Architecture):
    """See `with_heads`."""

    net: Architecture

    def __init__(self, net: Architecture, heads: Mapping[str, nn.Module]) -> None:
        super().__init__(net.predictions | {task: task for task in heads}, net.dense)
        self.net = net
        self.heads = nn.ModuleDict(heads)

    def size_of(self, inputs: Any) -> Sequence[int] | None:
        return self.net.size_of(inputs)

    def placed(self, name: str, prediction: Tensor, size: tuple[int, ...]) -> Tensor:
        return prediction if name in self.heads else self.net.placed(name, prediction, size)

    def features(self, inputs: Any) -> list[Tensor]:
        return self.net.features(inputs)

    def shared_parameters(self) -> list[nn.Parameter]:
        return self.net.shared_parameters()


class WithHeads(_Beside):
    """See `with_heads`."""

    def predict(self, inputs: Any) -> dict[str, Tensor]:
        features = self.features(inputs)
        return self.net.predict(features) | {task: head(features[-1]) for task, head in self.heads.items()}


class BranchingWithHeads(_Beside, BranchingArchitecture):
    """See `with_heads`."""

    net: BranchingArchitecture

    def branch(self, task: str, features: Sequence[Tensor]) -> Tensor:
        prediction: Tensor = self.heads[task](features[-1]) if task in self.heads else self.net.branch(task, features)
        return prediction
