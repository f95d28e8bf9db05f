"""How well a model knows how wrong it may be, on held-out data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_uncertainty._show import load_pyplot, render
from lightning_uncertainty._tensors import exchange_device, summed_over_ranks
from lightning_uncertainty.calibration._batches import Inputs, feeding, require_tasks
from lightning_uncertainty.likelihoods import Likelihood, Prediction
from lightning_uncertainty.metrics import CRPS, IntervalCoverage, PredictiveNLL, ReliabilityDiagram, Sharpness
from lightning_uncertainty.mixin import MultiTaskMixin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Calibration", "assess"]

_FORMATS = {"labels": "d", **{f"coverage_{level}": ".1%" for level in (50, 68, 90, 95)}}


@dataclass(frozen=True)
class Calibration:
    """How calibrated the tasks of a model are; `print` shows the table.

    Attributes:
        metrics: by task, updated: coverage, sharpness, NLL and CRPS of a density; reliability of classes.
        labels: how many labels were observed, by task.
    """

    metrics: Mapping[str, Mapping[str, Metric]]
    labels: Mapping[str, int]

    def rows(self) -> dict[str, dict[str, float]]:
        """Return numbers by task: `coverage_<level>`, `sharpness`, `nll`, `crps`, or `ece`, and `labels`."""
        rows: dict[str, dict[str, float]] = {}
        for task, metrics in self.metrics.items():
            row: dict[str, float] = {}
            for name, metric in metrics.items():
                with warnings.catch_warnings():  # this process may have none of the labels that others have
                    warnings.filterwarnings("ignore", "The ``compute`` method of metric")
                    value = metric.compute()
                if name == "coverage":
                    row |= {level: share.item() for level, share in value.items()}
                elif name == "reliability":
                    row["ece"] = value.ece.item()
                else:
                    row[name] = value.item()
            rows[task] = {**row, "labels": self.labels[task]}
        return rows

    def table(self) -> str:
        """Return the numbers as text: rich's table where it is installed, plain else."""
        rows = self.rows()
        known = dict.fromkeys(name for row in rows.values() for name in row)
        shown = [name for name in known if name != "labels" and (name in _FORMATS or "coverage" not in name)]
        columns = [*shown, "labels"]
        lines = [
            [task, *(format(row[name], _FORMATS.get(name, ".4g")) if name in row else "" for name in columns)]
            for task, row in rows.items()
        ]
        return render("Calibration", ["task", *columns], lines)

    def __str__(self) -> str:
        return self.table()

    def plot(self) -> Figure:
        """Draw a panel for each task: coverage of intervals, or reliability of probabilities.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        pyplot = load_pyplot()
        count = len(self.metrics)
        figure: Figure
        figure, panels = pyplot.subplots(1, count, figsize=(4 * count, 4), layout="constrained", squeeze=False)
        for ax, (task, metrics) in zip(panels[0], self.metrics.items(), strict=True):
            drawn: Any = metrics.get("coverage") or metrics["reliability"]
            drawn.plot(ax)
            ax.set_title(task)
        return figure


def assess(
    module: MultiTaskMixin,
    dataloader: Iterable[Any],
    *,
    inputs: Inputs = None,
    forward: Callable[[Any], Mapping[str, Tensor]] | None = None,
    datamodule: Any = None,
    **options: Any,
) -> Calibration:
    """Return how calibrated `predict_tasks` is on held-out data, by its total uncertainty and its probabilities.

    Tasks without a label, or for which no σ is known, are left out. Batches come as to a step of validation, and in
    several processes from all of them, as for `recalibrate`.

    Args:
        module: with its corrections, as it would predict.
        dataloader: of data that neither training nor `recalibrate` saw.
        inputs: as for `recalibrate`.
        forward: as for `recalibrate`.
        datamodule: as for `recalibrate`.
        options: as for `predict_tasks`, such as `samples=30` or `ensemble`.

    Raises:
        ValueError: no task is left, or the outputs or labels are not what the tasks need.
        TypeError: the module is no `MultiTaskMixin`, or the data are no dataloader.
        RuntimeError: it has no tasks.

    Example:
        >>> import torch
        >>> from pytorch_lightning import LightningModule
        >>> class Net(MultiTaskMixin, LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.register_tasks({"kind": "categorical"})
        ...
        ...     def forward(self, logits):
        ...         return {"kind": logits}
        >>> batch = {"x": torch.tensor([[4.0, 0.0]] * 4), "kind": torch.tensor([0, 0, 0, 1])}
        >>> round(assess(Net(), [batch], inputs="x").rows()["kind"]["ece"], 3)  # sure to 98 %, right to 75 %
        0.232
    """
    require_tasks("assess", module, "assess(ensemble.members[0], dataloader, ensemble=ensemble)")
    likelihoods = module.task_likelihoods()
    device = module.task_weighting.task_ids.device
    metrics = {name: _metrics_of(kind) for name, kind in likelihoods.items()}
    for of_task in metrics.values():
        for metric in of_task.values():
            metric.to(device)
    seen = dict.fromkeys(likelihoods, 0)
    with feeding(module, datamodule) as feed:
        for given, batch in feed.batches(dataloader, inputs):
            with feed.step():
                pairs = _pairs(module, module.predict_tasks(given, forward=forward, **options), batch)
            for name, pair in pairs.items():
                seen[name] += _update(metrics[name], pair)
    total = summed_over_ranks(torch.tensor(list(seen.values()))).tolist()
    labels = dict(zip(seen, total, strict=True))
    for of_task in metrics.values():
        for metric in of_task.values():
            metric.to(exchange_device(device))
    counted = {name: of_task for name, of_task in metrics.items() if labels[name]}
    if not counted:
        raise ValueError(
            "calibration should be of tasks with labels and, in regression, with σ: found none; give held-out data, "
            "and train with a weighting that has log-variances"
        )
    return Calibration(counted, {name: labels[name] for name in counted})


def _pairs(
    module: MultiTaskMixin, predictions: Mapping[str, Prediction], batch: Any
) -> dict[str, tuple[Prediction, Tensor]]:
    """Return predictions and labels of the observed scalars of a batch, flat, by task."""
    likelihoods, pairs = module.task_likelihoods(), {}
    for name, prediction in predictions.items():
        target, mask = module.labels_of(name, batch)
        if target is not None:
            pairs[name] = likelihoods[name].paired(prediction, target, mask)
    return pairs


def _metrics_of(likelihood: Likelihood) -> dict[str, Metric]:
    kind = likelihood.predictive
    if kind == "classes" or kind == "event":
        return {"reliability": ReliabilityDiagram()}
    if kind == "mean":
        return {}
    of: Literal["gaussian", "laplace"] = kind
    levels = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.68, 0.8, 0.9, 0.95]
    return {
        "coverage": IntervalCoverage(levels, of),
        "sharpness": Sharpness(),
        "nll": PredictiveNLL(of),
        "crps": CRPS(of),
    }


def _update(metrics: Mapping[str, Metric], pair: tuple[Prediction, Tensor]) -> int:
    """Update the metrics of a task; return how many labels that were."""
    prediction, labels = pair
    if not metrics or not len(labels) or ("coverage" in metrics and bool(prediction.total.isnan().all())):
        return 0
    for name, metric in metrics.items():
        if name == "reliability":
            metric.update(prediction.mean, labels if prediction.mean.dim() > 1 else labels.round())
        else:
            metric.update(prediction.mean, prediction.total, labels)
    return len(labels)
