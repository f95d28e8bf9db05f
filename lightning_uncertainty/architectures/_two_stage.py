"""What PAD-Net and PAP-Net share: initial predictions, an exchange of features, final predictions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_uncertainty.architectures._architecture import Architecture, check_tasks
from lightning_uncertainty.architectures._backbone import Backbone, as_backbone, features_of
from lightning_uncertainty.architectures._blocks import Bottleneck, conv_bn_relu

__all__ = ["TwoStageArchitecture", "final_heads"]


class TwoStageArchitecture(Architecture):
    """Every task predicts from features of its own, tasks exchange their features, and tasks predict again.

    Predictions come out in this order: final ones by task, those of auxiliary tasks, initial ones as `<task>_initial`.
    A subclass creates `heads`, see `final_heads`.

    Args:
        backbone: a module, or stages.
        channels: of its last features.
        outputs: channels of the predictions by task.
        auxiliary: channels of the predictions by auxiliary task; these predict once, before the exchange.
        width: channels of the features of every task.

    Raises:
        ValueError: there is no task, or predictions would share a name.
    """

    heads: nn.ModuleDict

    def __init__(
        self, backbone: Backbone, channels: int, outputs: Mapping[str, int], auxiliary: Mapping[str, int], width: int
    ) -> None:
        super().__init__(_predictions(check_tasks(outputs, type(self).__name__), tuple(auxiliary)))
        self.tasks = tuple(outputs)
        self.channels = channels
        self.backbone = as_backbone(backbone)
        first = {**outputs, **auxiliary}
        self.task_features = nn.ModuleDict(
            {task: nn.Sequential(Bottleneck(channels, width), Bottleneck(width, width)) for task in first}
        )
        self.initial_heads = nn.ModuleDict({task: nn.Conv2d(width, count, 1) for task, count in first.items()})

    @abstractmethod
    def exchange(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the final head of each task takes, from the features `[B, width, h, w]` of all tasks."""

    def predict(self, inputs: Any) -> dict[str, Tensor]:
        last = self._last_features(inputs)
        features = {task: block(last) for task, block in self.task_features.items()}
        refined = self.exchange(features)
        final = {task: self.heads[task](refined[task]) for task in self.tasks}
        first = {self._first_name(task): head(features[task]) for task, head in self.initial_heads.items()}
        predictions = final | first
        return {name: predictions[name] for name in self.predictions}

    def _first_name(self, task: str) -> str:
        return _initial(task) if task in self.tasks else task

    def _last_features(self, inputs: Any) -> Tensor:
        last = features_of(self.backbone, inputs)[-1]
        if last.dim() != 4 or last.shape[1] != self.channels:
            raise ValueError(
                f"the last features of the backbone should be [B, {self.channels}, h, w]: found {list(last.shape)}; "
                "correct channels, or what the backbone returns"
            )
        return last


def final_heads(outputs: Mapping[str, int], width: int, heads: Mapping[str, nn.Module] | None) -> nn.ModuleDict:
    """Return the head of every task, from features `[B, width, h, w]`.

    Args:
        outputs: channels of the predictions by task.
        width: channels that the heads take.
        heads: by task; the others get a 3x3 convolution with BatchNorm and ReLU, then a 1x1 convolution.

    Raises:
        ValueError: a head is for none of the tasks.
    """
    given = heads or {}
    if unknown := [task for task in given if task not in outputs]:
        raise ValueError(
            f"heads should be for tasks of outputs, {', '.join(outputs)}: found {', '.join(unknown)}; correct its name"
        )
    return nn.ModuleDict(
        {
            task: given[task]
            if task in given
            else nn.Sequential(conv_bn_relu(width, width), nn.Conv2d(width, count, 1))
            for task, count in outputs.items()
        }
    )


def _predictions(tasks: Iterable[str], auxiliary: Iterable[str]) -> dict[str, str]:
    """Return the task by the name of each prediction."""
    if twice := [task for task in auxiliary if task in tasks]:
        raise ValueError(
            f"auxiliary tasks should be other tasks than those of outputs: found {', '.join(twice)} in both; "
            "leave out of auxiliary what has a final prediction"
        )
    final = {task: task for task in (*tasks, *auxiliary)}
    initial = {_initial(task): task for task in tasks}
    if taken := [name for name in initial if name in final]:
        raise ValueError(
            f"a task should not bear the name of an initial prediction: found {', '.join(taken)}; rename that task"
        )
    return final | initial


def _initial(task: str) -> str:
    return f"{task}_initial"
