"""The charts of a run as plain data: what page.js draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lightning_uncertainty.dashboards.charts import scale_of
from lightning_uncertainty.dashboards.report._curves import Curve
from lightning_uncertainty.dashboards.report._run import STAGES, Run

__all__ = ["Chart", "charts", "extremes", "number"]

_POINTS = 1000  # of a line; more than a screen has columns for
_FEWEST = 50  # bins of a stack
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LOOKS = {"train": "dashed", "val": "line", "test": "points"}

SIGMA = (
    "Each task's σ (solid) and σ*, which would be optimal for its losses of the moment (dotted): where the two lie on "
    "each other, σ is true."
)
GAP = (
    "How far σ is from σ*: near 0 % σ is true, above it σ is too large and lags behind a falling loss, below it σ is "
    "too small."
)
WEIGHT = (
    "d total / d loss, by how much the total grows with a task's loss: it depends on the loss's unit, so look at its "
    "course rather than its height."
)
SHARE = (
    "Each task's part of the weighted loss, without penalties: a learnt σ brings it to the same level for any data, "
    "however gradients balance."
)
LOSS = (
    "Mean loss of the steps since the last row, in the unit of each task's likelihood: a line that still falls has "
    "more to gain from training."
)
HELD_OUT = "Mean loss on data that is not trained on: a line that rises while its training loss falls overfits."
BALANCED = (
    "The total with every σ at its optimum, one number for all tasks: lower is better, and its sign and size mean "
    "nothing."
)
METRIC = "Latest: {}."


@dataclass(frozen=True)
class Chart:
    """A chart and the words around it.

    Attributes:
        id: unique on the page.
        section: heading under which it stands.
        title: its own heading.
        caption: what to look for, in a sentence.
        axis: "log", "symlog" (log on both sides of zero), "linear", "gap" (ratios on a log axis, called by their
            percentages) or "share" (percent).
        traces: what is drawn; `task` is the task's index or None, `look` how it is drawn.
        small: whether it is one of many.
    """

    id: str
    section: str
    title: str
    caption: str
    axis: str
    traces: list[dict[str, Any]] = field(default_factory=list)
    small: bool = False

    def add(self, name: str, task: int | None, curve: Curve | None, look: str, keep: Any = None) -> None:
        """Add a trace, thinned to the extremes of every bin, or to the steps to keep, if there is a curve."""
        if curve is None:
            return
        kept = extremes(curve.y, _POINTS // 2) if keep is None else np.flatnonzero(np.isin(curve.x, keep))
        self.traces.append({
            "name": name,
            "task": task,
            "look": look,
            "x": curve.x[kept].tolist(),
            "y": [_json(value) for value in curve.y[kept].tolist()],
        })  # fmt: skip


def charts(run: Run) -> list[Chart]:
    """Return the charts for which the run has keys."""
    drawn = [
        _sigma(run, Chart("sigma", "σ", "σ per task", SIGMA, "log")),
        _per_task(run, Chart("sigma_gap", "σ", "Gap between σ and its optimum", GAP, "gap"), lambda gap: 1 + gap),
        _per_task(run, Chart("weight", "Weights", "Effective weights", WEIGHT, "log")),
        _shares(run, Chart("loss_share", "Weights", "Shares of the weighted loss", SHARE, "share")),
        _per_task(run, Chart("loss", "Losses", "Training losses", LOSS, "log")),
        _held_out_losses(run, Chart("held_out_loss", "Losses", "Held-out losses", HELD_OUT, "log")),
        _balanced(run, Chart("balanced_loss", "Losses", "Balanced loss", BALANCED, "linear")),
        *_metrics(run),
    ]
    return [_seen_whole(chart) for chart in drawn if chart.traces]


def _seen_whole(chart: Chart) -> Chart:
    """Return a chart of a log axis on another, where that would leave out values."""
    if chart.axis != "log":
        return chart
    return replace(chart, axis=scale_of([value for value in trace["y"] if value is not None] for trace in chart.traces))


def number(value: float) -> str:
    """Return a number as readers write it, with four digits.

    Example:
        >>> number(113_123.4), number(0.00123456), number(1.5e-9), number(0.0), number(float("nan"))
        ('113,100', '0.001235', '1.5 × 10⁻⁹', '0', 'nan')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    if not -5 < int(exponent) < 7:
        return f"{float(mantissa):g} × 10{str(int(exponent)).translate(_RAISED)}"
    return f"{float(f'{value:.3e}'):,.{max(0, 3 - int(exponent))}f}"


def _per_task(run: Run, chart: Chart, change: Callable[[Any], Any] = np.array) -> Chart:
    for index, task in enumerate(run.tasks):
        chart.add(task, index, _map(run.training(chart.id, task), change), "line")
    return chart


def _sigma(run: Run, chart: Chart) -> Chart:
    _per_task(run, chart)
    for index, task in enumerate(run.tasks):
        chart.add(task, index, _optimum(run, task), "dotted")
    return chart


def _shares(run: Run, chart: Chart) -> Chart:
    """Stack percentages over the same steps, so that they add up to 100."""
    curves = {task: _map(run.training("loss_share", task), lambda share: 100 * share) for task in run.tasks}
    there = [curve for curve in curves.values() if curve]
    bins = max(_FEWEST, _POINTS // (2 * len(there) or 1))  # every task's extremes are steps of all
    steps = np.unique(np.concatenate([curve.x[extremes(curve.y, bins)] for curve in there] or [[]]))
    for index, task in enumerate(run.tasks):
        chart.add(task, index, curves[task], "area", steps)
    return chart


def _held_out_losses(run: Run, chart: Chart) -> Chart:
    for (stage, task, metric), curve in run.held_out.items():
        if metric == "loss":
            chart.add(f"{task}, {stage}", run.tasks.index(task), curve, _LOOKS[stage])
    return chart


def _balanced(run: Run, chart: Chart) -> Chart:
    for stage, curve in run.balanced.items():
        chart.add(stage, None, curve, _LOOKS[stage])
    return chart


def _metrics(run: Run) -> Iterable[Chart]:
    """Return one chart for each metric of each task: their units differ."""
    for task, metric in dict.fromkeys((task, metric) for _, task, metric in run.held_out if metric != "loss"):
        stages = {stage: run.held_out[stage, task, metric] for stage in STAGES if (stage, task, metric) in run.held_out}
        latest = ", ".join(f"{number(curve.last)} ({stage})" for stage, curve in stages.items())
        title, caption = run.label(task, metric), METRIC.format(latest)
        chart = Chart(f"metric-{task}-{metric}", "Metrics", title, caption, "linear", small=True)
        for stage, curve in stages.items():
            chart.add(f"{task}, {stage}", run.tasks.index(task), curve, _LOOKS[stage])
        yield chart


def _optimum(run: Run, task: str) -> Curve | None:
    """σ* = σ / (1 + gap), at the steps that have both."""
    sigma, gap = run.training("sigma", task), run.training("sigma_gap", task)
    if sigma is None or gap is None:
        return None
    steps: Any = sigma.x
    own: Any = slice(None)
    others: Any = slice(None)
    if not np.array_equal(sigma.x, gap.x):
        steps, own, others = np.intersect1d(sigma.x, gap.x, assume_unique=True, return_indices=True)
    there = gap.y[others] != -1
    return Curve(steps[there], sigma.y[own][there] / (1 + gap.y[others][there]))


def _map(curve: Curve | None, change: Callable[[Any], Any]) -> Curve | None:
    return curve and Curve(curve.x, change(curve.y))


def extremes(values: Any, bins: int) -> Any:
    """Return the indices of the first and last value and of each bin's least, largest and first that is no number.

    A line through them is as high and as low as that of all values in every bin, so that no spike is lost; few values
    are all kept.

    Args:
        values: an array `[N]`.
        bins: how many, of as many neighbours each.

    Example:
        >>> extremes(np.array([1.0, 1.0, 9.0, 1.0, 1.0, -5.0, 1.0, 1.0]), bins=2).tolist()
        [0, 2, 4, 5, 7]
    """
    size = -(-len(values) // bins)
    if size <= 2:
        return np.arange(len(values))
    number = np.isfinite(values)
    starts = np.arange(0, len(values), size)
    padded = np.full(len(starts) * size, np.nan)
    padded[: len(values)] = np.where(number, values, np.nan)
    binned = padded.reshape(-1, size)
    least, most = (np.where(np.isnan(binned), fill, binned) for fill in (np.inf, -np.inf))
    found = [starts + least.argmin(1), starts + most.argmax(1)]
    found.append(starts[np.isnan(binned).any(1)] + np.isnan(binned).argmax(1)[np.isnan(binned).any(1)])
    return np.unique(np.clip(np.concatenate([[0], *found, [len(values) - 1]]), 0, len(values) - 1))


def _json(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
