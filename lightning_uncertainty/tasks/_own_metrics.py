"""The metrics that a task owns, each with what it is given; and which cannot be."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection, MultioutputWrapper
from torchmetrics.aggregation import BaseAggregator

from lightning_uncertainty.likelihoods import Likelihood, as_likelihood
from lightning_uncertainty.metrics.forms import FORMS, Form
from lightning_uncertainty.metrics.numbers import MOST, made_up, names_of
from lightning_uncertainty.tasks.task import Task

__all__ = ["own_metrics"]


def own_metrics(name: str, task: Task) -> dict[str, tuple[Metric, Form]]:
    """Return the metrics of a task by name, and what each is given.

    Raises:
        ValueError: something is no metric, has a name that cannot be used, or cannot take what it would be given; or
            its numbers cannot be logged.
    """
    given: Any = task.metrics
    if given is None:
        return {}
    if as_likelihood(task.likelihood).constant:
        raise ValueError(f"a constant term should have no metrics, as it has no labels: found some of {name!r}")
    named = {type(given).__name__: given} if isinstance(given, Metric) else given
    if isinstance(named, MetricCollection):
        named = dict(named.items())
    if not isinstance(named, Mapping) or not all(isinstance(metric, Metric) for metric in named.values()):
        raise ValueError(
            f"metrics of task {name!r} should be a torchmetrics Metric, or several by name: found {_found(named)}; "
            "make objects, as in {'MAE': MeanAbsoluteError()}"
        )
    forms = _forms(name, task, named)
    for key, metric in named.items():
        if key == "loss":
            raise ValueError(
                f"a metric of task {name!r} should not be called 'loss', which is the mean loss: rename it in the "
                "MetricCollection"
            )
        if not isinstance(key, str) or not key or "." in key:
            raise ValueError(
                f"a metric's name should be text without dots: found {key!r} for task {name!r}; rename it in the "
                "MetricCollection"
            )
        _check(name, key, metric, as_likelihood(task.likelihood), forms[key])
    return {key: (metric, forms[key]) for key, metric in named.items()}


def _forms(name: str, task: Task, named: Mapping[str, Metric]) -> dict[str, Form]:
    given = task.metrics_on
    forms: dict[Any, Any] = (
        {**dict.fromkeys(named, "scalars"), **given} if isinstance(given, Mapping) else dict.fromkeys(named, given)
    )
    unknown = [key for key in forms if key not in named]
    if unknown or any(form not in FORMS for form in forms.values()):
        raise ValueError(
            f"metrics_on of task {name!r} should be one of {', '.join(FORMS)}, or one for each metric by name "
            f"({', '.join(named)}): found {given!r}"
        )
    return forms


def _check(name: str, key: str, metric: Metric, likelihood: Likelihood, form: Form) -> None:
    """Raise where a metric cannot take what it would be given, or its result cannot be logged."""
    if form != "scalars" and type(likelihood).aligned is Likelihood.aligned:
        raise ValueError(
            f"metrics on {form} need a likelihood that has `aligned`: found {likelihood.name} without for metric "
            f"{key!r} of task {name!r}; write it, or use metrics_on='scalars'"
        )
    if any(isinstance(part, BaseAggregator) for part in metric.modules()):
        raise ValueError(
            f"a metric should compare predictions with labels: found {key!r} of task {name!r}, a "
            f"{type(metric).__name__} of single values; take another metric, or log it yourself"
        )
    several = next((found for part in metric.modules() if (found := _several(part))), None)
    if several is not None and form == "scalars":
        raise ValueError(
            f"a metric of several outputs ({several}) should be given rows: found metric {key!r} of task {name!r} on "
            "scalars, where all outputs are one; say Task(..., metrics_on='rows')"
        )
    if form == "images" or not _is_known(metric, likelihood):
        return
    try:
        results = _tried(metric, likelihood, form)
    except Exception as error:
        other = _other_form(metric, likelihood, form)
        raise ValueError(
            f"a metric should take predictions and labels as a {likelihood.name} task has them, on {form}: found "
            f"metric {key!r} of task {name!r}, a {type(metric).__name__}, which says: {_first_line(error)}; "
            + (f"say Task(..., metrics_on={other!r})" if other else "take another metric, or log it yourself")
        ) from error
    if results[0] != results[1] or len(results[0]) > MOST:
        found = "a result whose size is that of the data" if results[0] != results[1] else f"{len(results[0])} numbers"
        raise ValueError(
            f"a metric should have a number, or at most {MOST} of them: found {found} for metric {key!r} of task "
            f"{name!r}, a {type(metric).__name__}; average it, or compute it yourself"
        )


def _several(part: Any) -> str | None:
    """Return by what a metric tells that it is of several outputs; None where it does not."""
    multioutput, outputs = getattr(part, "multioutput", "uniform_average"), getattr(part, "num_outputs", 1)
    if multioutput != "uniform_average":
        return f"multioutput={multioutput!r}"
    return f"num_outputs={outputs}" if isinstance(outputs, int) and outputs > 1 else None


def _is_known(metric: Metric, likelihood: Likelihood) -> bool:
    """Whether both are of those whose labels can be made up: others may want more than their shape."""
    parts = [part for part in metric.modules() if isinstance(part, Metric)]
    if any(isinstance(first, Tensor) and first.is_meta for part in parts for first in part._defaults.values()):
        return False  # which is told where its copy is made
    modules = [type(part).__module__ for part in parts]
    ours = all(module.partition(".")[0] == "torchmetrics" for module in modules)
    transformed = "torchmetrics.wrappers.transformations" in modules  # which torchmetrics 1.4 has not
    return ours and not transformed and type(likelihood).__module__.startswith("lightning_uncertainty.")


def _tried(metric: Metric, likelihood: Likelihood, form: Form) -> list[tuple[str, ...]]:
    """Return the names of a metric's numbers for batches of two sizes.

    Raises:
        Exception: whatever the metric raises of them, be labels any numbers or 0 and 1.
    """
    examples = [_example(metric, likelihood, form, count) for count in (8, 11)]
    try:
        return [names_of(metric, *example) for example in examples]
    except Exception:
        if not examples[0][1].is_floating_point():
            raise
        with suppress(Exception):
            return [names_of(metric, prediction, label.round()) for prediction, label in examples]
        raise


def _example(metric: Metric, likelihood: Likelihood, form: Form, count: int) -> tuple[Tensor, Tensor]:
    """Return what a metric would be given of a task, made up."""
    attributes = [vars(part) for part in metric.modules()]
    numbers = [len(part.metrics) for part in metric.modules() if isinstance(part, MultioutputWrapper)]
    numbers += [part[key] for key in ("num_labels", "num_outputs") for part in attributes if part.get(key)]
    like = torch.zeros((), dtype=torch.float32, device="cpu")
    if likelihood.predictive == "classes":
        classes = next((part["num_classes"] for part in attributes if part.get("num_classes")), 3)
        return made_up(torch.Size([classes]), torch.Size([]), like.long(), count)
    shape = torch.Size([numbers[0] if numbers else 3] if form == "rows" else [])
    return made_up(shape, shape, like.long() if likelihood.predictive == "event" else like, count)


def _other_form(metric: Metric, likelihood: Likelihood, form: Form) -> Form | None:
    if ".image." in type(metric).__module__ or "void_color" in vars(metric):
        return "images"
    other: Form = "rows" if form == "scalars" else "scalars"
    try:
        _tried(metric, likelihood, other)
    except Exception:
        return None
    return other


def _found(given: Any) -> str:
    if isinstance(given, Mapping):
        given = next(metric for metric in given.values() if not isinstance(metric, Metric))
    return f"the class {given.__name__}" if inspect.isclass(given) else f"a {type(given).__name__}"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
