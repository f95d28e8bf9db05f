"""The contract of all architectures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_uncertainty.architectures._blocks import resize

__all__ = ["Architecture", "BranchingArchitecture", "check_all_dense", "check_tasks"]


class Architecture(nn.Module, ABC):
    """Images, or the features of a backbone, go in; a prediction for every name in `predictions` comes out.

    A task's final prediction, or its only one, bears the task's name; intermediate ones stand beside it under names of
    their own, to be weighed like any loss (see `deep_supervision`).

    A task is dense if it predicts something for every place of the input: every pixel of an image `[B, C, H, W]`, step
    of a sequence `[B, C, L]`, voxel of a volume `[B, C, D, H, W]`. Its predictions are resized linearly to the places
    of the input, or to `size` where one is given. Those of other tasks, as the class of an image or a rotation matrix,
    are left as they are.

    Args:
        predictions: the task by the name of each prediction, in the order in which they come out.
        dense: names of the dense tasks. Where None a prediction `[B, C, h, w]` for images is taken for one that is, and
            one without places for one that is not; anything else is asked for.
        dimensions: of the features: 0 for vectors, 1 for sequences, 2 for images, 3 for volumes.

    Attributes:
        predictions: the same.
        dense: the same.
        dimensions: the same.

    Raises:
        ValueError: a dense task is none of the tasks, or vectors have one; or, in the forward pass, one predicts in
            other dimensions than the input's, or predictions have places of sequences or volumes and nobody has said
            what is dense.
    """

    def __init__(
        self, predictions: Mapping[str, str], dense: Collection[str] | None = None, dimensions: int = 2
    ) -> None:
        super().__init__()
        self.predictions: dict[str, str] = dict(predictions)
        self.dense = None if dense is None else _dense(dense, list(dict.fromkeys(predictions.values())))
        self.dimensions = dimensions
        if self.dense and dimensions == 0:
            raise ValueError(
                f"dense should be empty for vectors, which have no places: found {', '.join(self.dense)}; leave it out"
            )

    def forward(self, inputs: Any, size: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return the predictions by name.

        Args:
            inputs: images `[B, C, H, W]` or whatever the backbone takes, or a sequence of features in its stead.
            size: `(H, W)` of the dense predictions, or as many numbers as inputs have dimensions; the inputs' where
                None, and the features' own where these take their place.
        """
        return self.resized(self.predict(inputs), self.size_of(inputs) if size is None else size)

    def size_of(self, inputs: Any) -> Sequence[int] | None:
        """Return the `(H, W)` of dense predictions where none is given: the inputs'; else None, the features' own."""
        return inputs.shape[2:] if isinstance(inputs, Tensor) and 3 <= inputs.dim() <= 5 else None

    def resized(self, predictions: Mapping[str, Tensor], size: Sequence[int] | None) -> dict[str, Tensor]:
        """Return predictions of which the dense ones have this size; all as they are where it is None."""
        if size is None:
            return dict(predictions)
        return {name: self.placed(name, prediction, tuple(size)) for name, prediction in predictions.items()}

    def placed(self, name: str, prediction: Tensor, size: tuple[int, ...]) -> Tensor:
        """Return one prediction, of this size if it is dense.

        Raises:
            ValueError: see the class.
        """
        task = self.predictions.get(name, name)
        if self.dense is not None and task not in self.dense:
            return prediction
        fits = prediction.dim() == len(size) + 2
        if self.dense is not None and not fits:
            raise ValueError(
                f"predictions of dense tasks should have the {len(size)} dimensions of places of the inputs: found "
                f"{list(prediction.shape)} for {name!r}; let its head keep them, or leave {task!r} out of dense"
            )
        if self.dense is None and fits and len(size) != self.dimensions and prediction.shape[2:] != size:
            raise ValueError(
                f"{type(self).__name__} should be told which of its tasks are dense, as inputs are no images: found a "
                f"prediction {list(prediction.shape)} of {name!r} for {list(size)} places; give dense=[{task!r}], to "
                "have it resized, or dense=[], to leave it as it is"
            )
        return resize(prediction, size) if fits else prediction

    def features(self, inputs: Any) -> list[Tensor]:
        """Return the features that all tasks share; a sequence of features is returned as it is.

        Raises:
            ValueError: there are none.
        """
        raise ValueError(
            f"heads of tasks beside {type(self).__name__} should have features that all its tasks share: found none; "
            "give them to the architecture, as heads={...}"
        )

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
        return self.resized({task: self.branch(task, branches[task]) for task in self.predictions}, size)


def _dense(dense: Collection[str], tasks: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the dense tasks.

    Raises:
        ValueError: one is no task, or they are no collection of names.
    """
    names = [dense] if isinstance(dense, str) else list(dense)
    if isinstance(dense, str) or (unknown := [name for name in names if name not in tasks]):
        found = repr(dense) if isinstance(dense, str) else ", ".join(map(str, unknown))
        raise ValueError(
            f"dense should list names of tasks, of {', '.join(tasks)}: found {found}; write dense=[{tasks[0]!r}], or "
            "dense=[] for none"
        )
    return tuple(task for task in tasks if task in names)


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


def check_all_dense(net: Architecture, why: str) -> None:
    """Look whether every task is dense, where the wiring has no meaning for others.

    Raises:
        ValueError: one is not.
    """
    name = type(net).__name__
    if others := [task for task in dict.fromkeys(net.predictions.values()) if task not in (net.dense or ())]:
        raise ValueError(
            f"every task of {name} should be dense, as {why}: found {', '.join(others)}, left out of dense; give such "
            f"a task a head of its own beside {name}, as Task(..., head=...) of MultiTaskModule, or use PADNet"
        )
