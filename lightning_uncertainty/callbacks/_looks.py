"""What is seen of the kept rows: pictures, predictions and labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lightning_uncertainty.callbacks._fixed_rows import Rows
from lightning_uncertainty.callbacks._outputs import Forward, made_of
from lightning_uncertainty.callbacks._photographs import Where, channels_first, found_at, picture_of
from lightning_uncertainty.likelihoods import Likelihood, Prediction
from lightning_uncertainty.mixin import MultiTaskMixin

__all__ = ["Labels", "Look", "Tell", "check_classes", "is_classes", "look_at", "tell_apart"]

_LEAST = 8  # of the sides of pictures without channels

Tell = Callable[[str, str], None]


class Labels(NamedTuple):
    """Labels of a task, in the shape of its prediction (classes without their dimension).

    Attributes:
        values: `[B, ...]`.
        there: where one is observed.
    """

    values: Tensor
    there: Tensor


class Look(NamedTuple):
    """What is seen of a batch.

    Attributes:
        rows: that were looked at.
        batch: that holds the labels.
        picture: `[B, ...]`; None where there is none.
        predictions: by task.
        labels: by task; a task whose labels nobody finds is left out.
    """

    rows: Rows
    batch: Any
    picture: Tensor | None
    predictions: dict[str, Prediction]
    labels: dict[str, Labels]


def look_at(
    module: Any,
    net: MultiTaskMixin,
    rows: Rows,
    *,
    loader: tuple[int, ...],
    image: Where | None,
    targets: Mapping[str, Where],
    forward: Forward | None,
    samples: int,
    tasks: Collection[str],
    tell: Tell,
) -> Look:
    """Look at the kept rows of a batch; see `made_of`.

    Args:
        module: that the Trainer runs.
        net: the part of it that has tasks.
        rows: that were kept.
        loader: the number of their loader, where there are several.
        image: where pictures are.
        targets: where labels are, of tasks that do not say so themselves.
        forward: from module and batch to outputs by task.
        samples: passes.
        tasks: that are wanted.
        tell: is told what cannot be shown, with a key by which it is told once.

    Raises:
        ValueError: nothing tells the outputs or, where it was said where to look, pictures or labels.
    """
    picture = picture_of(rows.batch, image, module)
    place = (rows.number, *loader)
    made = made_of(module, net, rows.batch, place=place, forward=forward, picture=picture, samples=samples, tasks=tasks)
    likelihoods = net.task_likelihoods()
    predictions, labels = {}, {}
    for name in tasks:
        if name not in made.outputs:
            tell(f"output {name}", f"an output of task {name!r} among those of the module: found none; it is left out")
            continue
        predictions[name] = made.predictions[name]
        mend = f"give targets={{{name!r}: ...}}, a key, a place in a tuple, or a function of the batch"
        try:
            if name in targets:
                target, mask = found_at(made.batch, targets[name], f"labels of task {name!r}", mend), None
            else:
                target, mask = net.labels_of(name, made.batch)
            _, values, there = likelihoods[name].aligned(made.outputs[name], target, mask)
            labels[name] = Labels(values, there)
        except (ValueError, NotImplementedError) as error:
            if name in targets:
                raise
            tell(f"labels {name}", f"labels of task {name!r}: found none ({error}); it is shown without truth; {mend}")
    return Look(rows, made.batch, picture if _is_picture(picture) else None, predictions, labels)


def _is_picture(picture: Tensor | None) -> bool:
    """Whether a tensor has dimensions of space; without channels these are not small, as it might be series else."""
    return picture is not None and (
        picture.dim() in (4, 5) or (picture.dim() == 3 and min(picture.shape[1:]) >= _LEAST)
    )


def _is_map(mean: Tensor, classes: bool, picture: Tensor | None) -> bool:
    """Whether a prediction has dimensions of space, two or those of a volume.

    Args:
        mean: `[B, C, H, W]` or `[B, C, D, H, W]`, or `[B, H, W]` where these are no classes and it has the proportions
            of the picture: it might be series `[B, C, L]` else.
        classes: whether channels are classes.
        picture: `[B, C, H, W]`.
    """
    if mean.dim() in (4, 5):
        return True
    if classes or mean.dim() != 3 or picture is None or min(mean.shape[-2:]) < _LEAST:
        return False
    (height, width), (high, wide) = mean.shape[-2:], channels_first(picture).shape[-2:]
    return abs(height * wide - width * high) <= max(high, wide)


def tell_apart(looks: Sequence[Look], likelihoods: Mapping[str, Likelihood]) -> tuple[list[str], list[str]]:
    """Return the tasks whose predictions are maps, and the others."""
    found = looks[0].predictions.items() if looks else ()
    maps = [name for name, made in found if _is_map(made.mean, is_classes(likelihoods[name]), looks[0].picture)]
    return maps, [name for name, _ in found if name not in maps]


def check_classes(
    looks: Sequence[Look], likelihoods: Mapping[str, Likelihood], given: Mapping[str, Mapping[str, Sequence[Any]]]
) -> None:
    """Look whether names and colours are as many as classes.

    Raises:
        ValueError: they are not, or the task has no classes.
    """
    for what, by_task in given.items():
        for name, entries in by_task.items():
            if not is_classes(likelihoods[name]):
                raise ValueError(f"{what} should be of tasks with classes: found {name!r}, {likelihoods[name]!r}")
            counts = {look.predictions[name].mean.shape[1] for look in looks if name in look.predictions}
            if counts - {len(entries)}:
                raise ValueError(
                    f"{what} of task {name!r} should be one for each of its {counts.pop()} outputs: found "
                    f"{len(entries)}; name them all, in the order of the outputs"
                )


def is_classes(likelihood: Likelihood) -> bool:
    """Whether predictions of a likelihood are probabilities of classes."""
    return likelihood.predictive == "classes"
