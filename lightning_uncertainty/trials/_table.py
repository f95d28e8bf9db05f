"""The table of a comparison as text, as wide as a screen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lightning_uncertainty._show import render
from lightning_uncertainty.trials._mean import Mean
from lightning_uncertainty.trials._measures import Measure
from lightning_uncertainty.trials._result import Result

__all__ = ["WIDTH", "comparison_table", "short_metric"]

WIDTH = 120
LONGEST = 20  # letters of a weighting's name where the table is too wide

Column = tuple[str, list[str]]


def comparison_table(
    title: str, results: Sequence[Result], measures: Sequence[Measure], labels: Mapping[str, str], seeds: int
) -> str:
    """Return the table: whole, else with short names, else in several parts that are each narrow enough.

    Args:
        title: above it.
        results: its rows.
        measures: of its first columns.
        labels: names of metrics by log key, where these differ from what is logged.
        seeds: of the title; a figure over fewer says so.
    """
    names = [result.name for result in results]
    long = [f"{measure.task} {_metric(measure, labels)}" for measure in measures]
    whole = _parts(title, names, _columns(results, measures, long, seeds), _last(results, seeds), parts=1)
    if _width(whole) <= WIDTH:
        return whole
    short, legend = _short_tasks(measures, labels)
    names, cut = _short_names(names)
    columns = [
        (head, [cell.replace(" ± ", "±") for cell in cells])
        for head, cells in _columns(results, measures, short, seeds)
    ]
    for parts in range(1, len(columns) + 2):
        text = _parts(title, names, columns, _last(results, seeds), parts)
        if _width(text) <= WIDTH:
            break
    return "\n".join([text, *_wrapped(legend + cut)])


def short_metric(name: str) -> str:
    """Return the initials of a metric that is called by its class.

    Example:
        >>> short_metric("MeanAbsoluteError"), short_metric("MulticlassAccuracy"), short_metric("RMSE")
        ('MAE', 'Accuracy', 'RMSE')
    """
    name = re.sub("^(Multiclass|Binary|Multilabel)(?=[A-Z])", "", name)
    words = re.findall("[A-Z][a-z]+", name)
    return "".join(word[0] for word in words) if len(words) > 2 and "".join(words) == name else name


def _metric(measure: Measure, labels: Mapping[str, str]) -> str:
    return labels.get(measure.key, measure.metric)


def _columns(results: Sequence[Result], measures: Sequence[Measure], names: Sequence[str], seeds: int) -> list[Column]:
    return [
        (
            f"{name} {'↑' if measure.higher_is_better else '↓'}",
            [_text(result.values.get(measure), ".4g", seeds) for result in results],
        )
        for name, measure in zip(names, measures, strict=True)
    ]


def _last(results: Sequence[Result], seeds: int) -> list[Column]:
    columns = [
        ("gain %", [_text(result.gain, "+.2f", seeds) for result in results]),
        ("gain alone %", [_text(result.gain_alone, "+.2f", seeds) for result in results]),
        ("mean rank", [_text(result.ranks, ".2f", seeds) for result in results]),
        ("step ms", ["" if result.step_time is None else f"{1e3 * result.step_time:.2f}" for result in results]),
        ("peak MiB", ["" if result.peak_memory is None else f"{result.peak_memory / 2**20:.0f}" for result in results]),
        ("failed", [_cut(result.failed, 40) for result in results]),
    ]
    return [column for column in columns if any(column[1])]


def _text(found: Mean | None, spec: str, seeds: int) -> str:
    return "" if found is None else found.text(spec, seeds)


def _parts(title: str, names: Sequence[str], columns: Sequence[Column], last: Sequence[Column], parts: int) -> str:
    """Return tables one above the other; what holds of all tasks together stands in the last of several."""
    if parts == 1:
        groups = [[*columns, *last]]
    else:
        size = -(-len(columns) // (parts - 1))
        groups = [[*columns[i : i + size]] for i in range(0, len(columns), size)] + [[*last]]
    tables = []
    for i, group in enumerate(groups):
        head = title if not i else f"{title} (part {i + 1})"
        lines = [[name, *cells] for name, *cells in zip(names, *(cells for _, cells in group), strict=True)]
        tables.append(render(head, ["weighting", *(header for header, _ in group)], lines))
    return "\n\n".join(tables)


def _short_tasks(measures: Sequence[Measure], labels: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return names of columns, as short as they may be while they differ, and what they stand for."""
    tasks = list(dict.fromkeys(measure.task for measure in measures))
    lengths = range(3, max(map(len, tasks)) + 1)
    size = next((n for n in lengths if len({task[:n] for task in tasks}) == len(tasks)), max(map(len, tasks)))
    short = {task: task[:size] if size <= 6 else str(i + 1) for i, task in enumerate(tasks)}
    legend = [f"{short[task]}: {task}" for task in tasks if short[task] != task]
    alike = {_metric(measure, labels) for measure in measures}
    if len(alike) == 1:  # as where every task has the same: said once
        return [short[measure.task] for measure in measures], [*legend, f"all: {alike.pop()}"]
    metrics = {name: short_metric(name) for name in dict.fromkeys(_metric(measure, labels) for measure in measures)}
    legend += [f"{new}: {name}" for name, new in metrics.items() if new != name]
    return [f"{short[measure.task]} {metrics[_metric(measure, labels)]}" for measure in measures], legend


def _short_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    short, legend = [], []
    for i, name in enumerate(names):
        short.append(name if len(name) <= LONGEST else f"{name[: LONGEST - 4]}…{i + 1}")
        if short[-1] != name:
            legend.append(f"{short[-1]}: {_cut(name, WIDTH - LONGEST - 4)}")
    return short, legend


def _wrapped(legend: Sequence[str]) -> list[str]:
    """Return lines that hold a legend."""
    lines: list[str] = []
    for entry in legend:
        if lines and len(lines[-1]) + len(entry) + 2 <= WIDTH:
            lines[-1] += f"; {entry}"
        else:
            lines.append(_cut(entry, WIDTH))
    return ["", *lines] if lines else []


def _width(text: str) -> int:
    return max(map(len, text.splitlines()))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
