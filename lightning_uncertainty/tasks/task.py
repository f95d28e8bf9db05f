"""What a task is: its likelihood, and what it may own of head, labels and metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_uncertainty._tensors import Loadable, by_name, promote
from lightning_uncertainty.likelihoods import Likelihood, as_likelihood
from lightning_uncertainty.metrics.forms import Form
from lightning_uncertainty.tasks.by_name import TaskHeads

__all__ = [
    "Task",
    "Tasks",
    "check_known",
    "check_renamed",
    "deep_supervision",
    "likelihoods_of",
    "losses_of",
    "pick",
    "specify",
]


@dataclass(frozen=True)
class Task(Loadable):
    """A task that owns its head, its likelihood and its metrics.

    Args:
        likelihood: a name in `LIKELIHOODS` or a `Likelihood`, for example `Categorical(ignore_index=255)`.
        head: module from the shared features to the task's output.
        target: key of the batch, or function of the batch, that gives the labels; the task's name where None. Missing
            labels are NaN (class indices: `ignore_index`), or None for all of them.
        mask: key or function that gives a boolean tensor, True where a label is observed.
        metrics: torchmetrics, one or several by name, given predictions in label space (probabilities for classes) and
            labels. One with several numbers is logged as one for each, by its names or indices.
        metrics_on: what they are given, or that by name (others are on scalars). "scalars": the observed ones, flat,
            `[N]`, class probabilities `[N, C]`. "rows": `[N, D]`, for metrics of several outputs. "images": whole ones,
            `[N, C, H, W]`, or of any dimensions. Rows and images in which labels are missing are given only to metrics
            that say what to do with them: `ignore_index`, a parameter `mask` of `update`, or a MultioutputWrapper.
        auxiliary: whether the task only helps the others: it is trained like them, and left out of `MultiTaskGain`.

    Raises:
        ValueError: there is no such likelihood, or the head is no module.

    Example:
        >>> Task("laplace", head=nn.Linear(8, 1), target="depth_m").likelihood
        Laplace()
    """

    likelihood: str | Likelihood
    head: nn.Module | None = None
    target: str | Callable[[Any], Any] | None = None
    mask: str | Callable[[Any], Any] | None = None
    metrics: Metric | MetricCollection | Mapping[str, Metric] | None = None
    metrics_on: Form | Mapping[str, Form] = "scalars"
    auxiliary: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "likelihood", as_likelihood(self.likelihood))
        if self.head is not None and not isinstance(self.head, nn.Module):
            raise ValueError(
                f"a head should be a torch.nn.Module, so that its parameters are trained: found {self.head!r}; make an "
                "object of the class, or put the function into one"
            )

    def labels(self, name: str, batch: Any) -> tuple[Any, Any]:
        """Return labels and mask of a batch for the task of this name; each may be None. A constant term has none.

        Raises:
            ValueError: the batch has nothing there.
        """
        if as_likelihood(self.likelihood).constant:
            return None, None
        mend = "name another key, give a function of the batch, or put None there where a batch has none"
        target = pick(batch, name if self.target is None else self.target, f"labels of task {name!r}", mend)
        return target, None if self.mask is None else pick(batch, self.mask, f"mask of task {name!r}", mend)

    def observed(self, name: str, output: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """Return predictions in label space and labels of a batch's observed scalars, flat; what metrics are given."""
        target, mask = self.labels(name, batch)
        if target is None:
            return output.new_zeros(0), output.new_zeros(0)
        return as_likelihood(self.likelihood).observed(output, target, mask)

    def aligned(self, name: str, output: Tensor, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return predictions in label space, labels, and where these are observed, whole; see `Likelihood.aligned`."""
        likelihood = as_likelihood(self.likelihood)
        if type(likelihood).aligned is Likelihood.aligned:  # one of the user's that knows scalars alone
            prediction, label = self.observed(name, output, batch)
            return prediction, label, torch.ones_like(label, dtype=torch.bool)
        return likelihood.aligned(output, *self.labels(name, batch))


Tasks = Mapping[str, str | Likelihood | Task] | Iterable[tuple[str, str | Likelihood | Task]]


def specify(tasks: Tasks) -> dict[str, Task]:
    """Check the names of tasks and return a `Task` for each.

    Raises:
        ValueError: there is none, or a name cannot be used or is there twice.
    """
    pairs: Any = tasks.items() if isinstance(tasks, Mapping) else tasks
    pairs = [] if pairs is None else list(pairs) if isinstance(pairs, Iterable) else [pairs]
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise ValueError(
            "tasks should be given by name, each with a likelihood or a Task, as in {'depth': 'laplace'}: found "
            f"{tasks!r}"
        )
    if not pairs:
        raise ValueError("tasks should be at least one: found none; name them, as in {'depth': 'laplace'}")
    specified: dict[str, Task] = {}
    for name, task in pairs:
        usable = isinstance(name, str) and re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name)
        if not usable or name in dir(TaskHeads()):
            raise ValueError(
                "a task's name should be letters, digits and underscores, not starting with a digit, and no attribute "
                f"of torch.nn.ModuleDict (such as 'type', 'train' or 'values'): found {name!r}; rename it"
            )
        if name in specified:
            raise ValueError(f"tasks should be named once each: found {name!r} twice; rename one")
        specified[name] = task if isinstance(task, Task) else Task(task)
    return specified


def deep_supervision(tasks: Tasks, predictions: Mapping[str, str]) -> dict[str, Task]:
    """Return a task for every prediction of a network that makes several for a task, some of them on its way.

    An intermediate prediction has its task's likelihood and labels, no metrics, and is auxiliary. Each is weighed like
    any loss and learns a σ of its own; `UncertaintyWeighting(shared=net.by_task())` gives those of a task one. Tasks
    with a head of their own, beside the network, come last, as they are.

    Args:
        tasks: as for `register_tasks`.
        predictions: the task by the name of each prediction, as an `Architecture` has it.

    Raises:
        ValueError: a task has a head and predictions, or neither, or a prediction is of no task.

    Example:
        >>> tasks = deep_supervision({"depth": "laplace"}, {"depth": "depth", "depth_initial": "depth"})
        >>> initial = tasks["depth_initial"]
        >>> initial.likelihood, initial.target, initial.metrics, initial.auxiliary
        (Laplace(), 'depth', None, True)
    """
    specified = specify(tasks)
    owners = {name: task for name, task in specified.items() if task.head is not None}
    if twice := [name for name in owners if name in {*predictions, *predictions.values()}]:
        raise ValueError(
            f"a task whose predictions are made by the network should have no head: found one for {', '.join(twice)}; "
            "leave it out"
        )
    made = {name: task for name, task in specified.items() if name not in owners}
    lost = [name for name in made if predictions.get(name) != name]
    unknown = sorted({task for task in predictions.values() if task not in made})
    if lost or unknown:
        raise ValueError(
            f"tasks without heads should be those of the predictions ({', '.join(dict.fromkeys(predictions.values()))})"
            f": found {', '.join(made) or 'none'}; name the same, or give a task a head of its own"
        )
    supervised = {}
    for prediction, name in predictions.items():
        task = specified[name]
        on_the_way = replace(task, target=name if task.target is None else task.target, metrics=None, auxiliary=True)
        supervised[prediction] = task if prediction == name else on_the_way
    return specify(supervised | owners)


def check_known(names: Iterable[str], tasks: Collection[str]) -> None:
    """Raise where a name is no task.

    Raises:
        ValueError: so it is.
    """
    unknown = [str(name) for name in names if name not in tasks]
    if unknown:
        raise ValueError(f"tasks should be among {', '.join(tasks)}: found {', '.join(unknown)}; register them all")


def check_renamed(renamed: Mapping[str, str], tasks: Mapping[str, Task]) -> dict[str, str]:
    """Return today's names by older ones.

    Raises:
        ValueError: a new name is no task, or an old one is.
    """
    renamed = by_name(renamed, "renamed", "{'old': 'new'}")
    wrong = [f"{old!r} to {new!r}" for old, new in renamed.items() if old in tasks or new not in list(tasks)]
    if wrong:
        raise ValueError(
            f"renamed should lead from older names to registered tasks ({', '.join(tasks)}): found {', '.join(wrong)}; "
            "write {'old': 'new'}"
        )
    return dict(renamed)


def pick(batch: Any, where: str | Callable[[Any], Any], what: str, mend: str) -> Any:
    """Return what a batch has under a key, or a function of it.

    Raises:
        ValueError: the batch has nothing there; the sentence says what it should be, and how to mend it.
    """
    if callable(where):
        return where(batch)
    if not isinstance(batch, Mapping) or where not in batch:
        found = f"keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ValueError(f"{what} should be under {where!r} in the batch: found {found}; {mend}")
    return batch[where]


def likelihoods_of(tasks: Mapping[str, Task]) -> dict[str, Likelihood]:
    """Return the likelihoods by task."""
    return {name: as_likelihood(task.likelihood) for name, task in tasks.items()}


def losses_of(tasks: Mapping[str, Task], outputs: Mapping[str, Tensor], batch: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Return `(sum, count)` of the loss of each output over its observed scalars.

    Raises:
        ValueError: the batch has no such labels, or they are not what the likelihood needs.
    """
    losses = {}
    for name, output in outputs.items():
        kind = as_likelihood(tasks[name].likelihood)
        if kind.constant:
            losses[name] = kind.loss(output, output)
            continue
        target, mask = tasks[name].labels(name, batch)
        if target is None:  # the head stays in the graph, so that ranks with labels need not wait
            losses[name] = (promote(output).sum() * 0.0, output.new_zeros((), dtype=torch.float32))
            continue
        try:
            losses[name] = kind.loss(output, target, mask)
        except ValueError as error:
            raise ValueError(f"task {name!r}: {error}") from error
    return losses
