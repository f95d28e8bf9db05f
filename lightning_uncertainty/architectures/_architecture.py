"""The contract of all architectures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Architecture", "BranchingArchitecture", "check_tasks"]


class Architecture(nn.Module, ABC):
    """Images, or the features of a backbone, go in; a prediction for every name in `predictions` comes out.

    A task's final prediction, or its only one, bears the task's name; intermediate ones stand beside it under names of
    their own, to be weighed like any loss (see `deep_supervision`). Dense predictions `[B, C, h, w]` are resized
    bilinearly to the images `[B, C, H, W]`, or to `size` where one is given.

    Args:
        predictions: the task by the name of each prediction, in the order in which they come out.

    Attributes:
        predictions: the same.
    """

    def __init__(self, predictions: Mapping[str, str]) -> None:
        super().__init__()
        self.predictions: dict[str, str] = dict(predictions)

    def forward(self, inputs: Any, size: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return the predictions by name.

        Args:
            inputs: images `[B, C, H, W]` or whatever the backbone takes, or a sequence of features in its stead.
            size: `(H, W)` of the dense predictions; the images' where None, and the features' own where there are none.
        """
        return resized(self.predict(inputs), self.size_of(inputs) if size is None else size)

    def size_of(self, inputs: Any) -> Sequence[int] | None:
        """Return the `(H, W)` of dense predictions where none is given: the images'; else None, the features' own."""
        return inputs.shape[-2:] if isinstance(inputs, Tensor) and inputs.dim() == 4 else None

    @abstractmethod
    def predict(self, inputs: Any) -> dict[str, Tensor]:
        """Return the predictions by name, dense ones at the size of the features."""

    @abstractmethod
    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters on which the final predictions of several tasks depend.

        What `GradientBalancing(on="parameters")` asks a module for.
        """

    def by_task(self) -> list[list[str]]:
        """Return the names of the predictions of each task that has several: `UncertaintyWeighting(shared=...)`."""
        names: dict[str, list[str]] = {}
        for prediction, task in self.predictions.items():
            names.setdefault(task, []).append(prediction)
        return [group for group in names.values() if len(group) > 1]


class BranchingArchitecture(Architecture):
    """An architecture whose tasks part after shared features and do not meet again.

    So the tasks' gradients can be balanced at the features, as `MultiTaskModule` does; in steps of your own::

        outputs = self.net(images, split=self.split_features)
    """

    def forward(
        self,
        inputs: Any,
        size: Sequence[int] | None = None,
        split: Callable[[list[Tensor]], Mapping[str, Sequence[Tensor]]] | None = None,
    ) -> dict[str, Tensor]:
        """Return the predictions by name.

        Args:
            inputs: see `Architecture`.
            size: likewise.
            split: from the features to those that each task is given, by task, as `split_features` of the module; all
                are given the same where None.
        """
        if split is None:
            return super().forward(inputs, size)
        return self.decode(split(self.features(inputs)), self.size_of(inputs) if size is None else size)

    @abstractmethod
    def features(self, inputs: Any) -> list[Tensor]:
        """Return the features that the tasks share; a sequence of features is returned as it is."""

    @abstractmethod
    def branch(self, task: str, features: Sequence[Tensor]) -> Tensor:
        """Return a task's prediction from its features, at their size."""

    def predict(self, inputs: Any) -> dict[str, Tensor]:
        features = self.features(inputs)
        return {task: self.branch(task, features) for task in self.predictions}

    def decode(self, branches: Mapping[str, Sequence[Tensor]], size: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return the predictions from the features that each task was given, as by `split_features`.

        Args:
            branches: features by task.
            size: `(H, W)` of the dense predictions; the features' own where None.
        """
        return resized({task: self.branch(task, branches[task]) for task in self.predictions}, size)


def resized(predictions: Mapping[str, Tensor], size: Sequence[int] | None) -> dict[str, Tensor]:
    """Return predictions of which those `[B, C, h, w]` have this size."""
    return {name: resize(prediction, size) for name, prediction in predictions.items()}


def resize(x: Tensor, size: Sequence[int] | None) -> Tensor:
    """Return `[B, C, h, w]` resized bilinearly to `[B, C, H, W]`; anything else, and for no size, as it is."""
    if size is None or x.dim() != 4 or x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def check_tasks(tasks: Mapping[str, Any], what: str, at_least: int = 1) -> tuple[str, ...]:
    """Return the names of tasks.

    Raises:
        ValueError: they are too few, or one cannot be used.
    """
    if len(tasks) < at_least:
        raise ValueError(
            f"{what} should be for at least {at_least} task{'s' * (at_least > 1)}: found {', '.join(tasks) or 'none'}"
        )
    taken = dir(nn.ModuleDict())
    if wrong := [name for name in tasks if not name.isidentifier() or name in taken]:
        raise ValueError(
            "a task's name should be letters, digits and underscores, and no attribute of torch.nn.ModuleDict (such as "
            f"'type' or 'values'): found {', '.join(map(repr, wrong))}; rename it"
        )
    return tuple(tasks)
