"""What PAD-Net and PAP-Net share: initial predictions, an exchange of features, final predictions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_uncertainty.architectures._architecture import Architecture, check_tasks
from lightning_uncertainty.architectures._backbone import Backbone, as_backbone, check_feature, features_of
from lightning_uncertainty.architectures._blocks import Bottleneck, MeanOverPlaces, conv_bn_relu, convolution

__all__ = ["TwoStageArchitecture"]


class TwoStageArchitecture(Architecture):
    """Every task predicts from features of its own, tasks exchange their features, and tasks predict again.

    Predictions come out in this order: final ones by task, those of auxiliary tasks, initial ones as `<task>_initial`.
    A subclass creates `heads`, as by `final_heads`. A task that is not dense predicts from the mean over all places.

    Args:
        backbone: a module, or stages.
        channels: of its last features.
        outputs: channels of the predictions by task.
        auxiliary: channels of the predictions by auxiliary task; these predict once, before the exchange.
        width: channels of the features of every task.
        dense: names of the dense tasks; all where None, and none where there are no places.
        dimensions: of the features.

    Raises:
        ValueError: there is no task, or predictions would share a name, or a dense task is none of the tasks, or
            there are dense ones without places.
    """

    heads: nn.ModuleDict

    def __init__(
        self,
        backbone: Backbone,
        channels: int,
        outputs: Mapping[str, int],
        auxiliary: Mapping[str, int],
        width: int,
        dense: Collection[str] | None,
        dimensions: int,
    ) -> None:
        first = {**outputs, **auxiliary}
        dense = (first if dimensions else ()) if dense is None else dense
        super().__init__(_predictions(check_tasks(outputs, type(self).__name__), tuple(auxiliary)), dense, dimensions)
        self.tasks = tuple(outputs)
        self.channels = channels
        self.backbone = as_backbone(backbone)
        self.task_features = nn.ModuleDict(
            {
                task: nn.Sequential(Bottleneck(channels, width, dimensions), Bottleneck(width, width, dimensions))
                for task in first
            }
        )
        self.initial_heads = nn.ModuleDict(
            {task: self._last_layer(task, width, count) for task, count in first.items()}
        )

    @abstractmethod
    def exchange(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the final head of each task takes, from the features `[B, width, h, w]` of all tasks."""

    def features(self, inputs: Any) -> list[Tensor]:
        return features_of(self.backbone, inputs)

    def predict(self, inputs: Any) -> dict[str, Tensor]:
        last = self.features(inputs)[-1]
        check_feature(last, self.channels, self.dimensions, "the last feature of the backbone")
        features = {task: block(last) for task, block in self.task_features.items()}
        refined = self.exchange(features)
        final = {task: self.heads[task](refined[task]) for task in self.tasks}
        first = {self._first_name(task): head(features[task]) for task, head in self.initial_heads.items()}
        predictions = final | first
        return {name: predictions[name] for name in self.predictions}

    def final_heads(
        self, outputs: Mapping[str, int], width: int, heads: Mapping[str, nn.Module] | None
    ) -> nn.ModuleDict:
        """Return the head of every task, from features `[B, width, ...]`.

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
                f"heads should be for tasks of outputs, {', '.join(outputs)}: found {', '.join(unknown)}; correct its "
                "name"
            )
        return nn.ModuleDict(
            {
                task: given[task]
                if task in given
                else nn.Sequential(
                    conv_bn_relu(width, width, dimensions=self.dimensions), self._last_layer(task, width, count)
                )
                for task, count in outputs.items()
            }
        )

    def _last_layer(self, task: str, width: int, count: int) -> nn.Module:
        """Return a 1x1 convolution; of the mean over all places, where the task is not dense."""
        if self.dimensions == 0 or task in (self.dense or ()):
            return convolution(self.dimensions, width, count)
        return nn.Sequential(MeanOverPlaces(), nn.Linear(width, count))

    def _first_name(self, task: str) -> str:
        return _initial(task) if task in self.tasks else task


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
