"""Hard parameter sharing: one trunk, a head for each task."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_uncertainty.architectures._architecture import BranchingArchitecture, check_tasks
from lightning_uncertainty.architectures._backbone import Backbone, as_backbone, features_of

__all__ = ["HardSharing"]


class HardSharing(BranchingArchitecture):
    """One backbone that all tasks share, and a head for each: the baseline of every comparison.

    `prediction_t = head_t(backbone(x))`

    Source: Caruana, "Multitask Learning", Machine Learning 1997.

    Args:
        backbone: a module, or stages.
        heads: by task; each takes the last features `[B, C, h, w]`.
        pyramid: whether heads take the list of all features instead, as decoders with skip connections do.
        dense: names of the dense tasks; see `Architecture`.

    Raises:
        ValueError: there is no task, no stage, a backbone returns no features, or a dense task is none of the tasks.

    Example:
        >>> import torch
        >>> stages = [nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 16, 3, stride=2)]
        >>> net = HardSharing(stages, {"depth": nn.Conv2d(16, 1, 1), "semantics": nn.Conv2d(16, 5, 1)})
        >>> {task: list(prediction.shape) for task, prediction in net(torch.ones(2, 3, 33, 47)).items()}
        {'depth': [2, 1, 33, 47], 'semantics': [2, 5, 33, 47]}
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: Mapping[str, nn.Module],
        *,
        pyramid: bool = False,
        dense: Collection[str] | None = None,
    ) -> None:
        super().__init__({task: task for task in check_tasks(heads, "HardSharing")}, dense)
        self.backbone = as_backbone(backbone)
        self.heads = nn.ModuleDict(heads)
        self.pyramid = pyramid

    def features(self, inputs: Any) -> list[Tensor]:
        return features_of(self.backbone, inputs)

    def branch(self, task: str, features: Sequence[Tensor]) -> Tensor:
        prediction: Tensor = self.heads[task](features if self.pyramid else features[-1])
        return prediction

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.backbone.parameters())
