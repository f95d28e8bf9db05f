"""Writes the page: words and tables as HTML, charts as data for plotly.js, all in one file."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

from lightning_uncertainty.dashboards.report._charts import Chart, charts, number
from lightning_uncertainty.dashboards.report._run import STAGES, Run

__all__ = ["write_report"]

COLOURS = 6  # in page.css; with as many again in another line style
DASHES = ("", "10,4", "10,3,2,3", "20,5", "20,4,4,4", "5,4", "5,3,1,3")
MANY = 10  # tasks, above which the table scrolls by itself; page.js has the same
MEDIANS = "Every task, its medians over the last rows (a tenth of them, at least five)"
INTRO = {
    "σ": "σ is what the model learns of a task's noise: the size of its residuals, where the task is a regression.",
    "Weights": "How much each task's loss counts in the total that is minimised.",
    "Losses": "The losses of the tasks in training, and on data that was held out.",
    "Metrics": "One chart for each task and metric, each on an axis of its own.",
}


def write_report(run: Run, path: str | Path) -> None:
    """Write one HTML file with everything in it, which any browser shows without a network.

    Args:
        run: what to report.
        path: the file; folders above it are made.

    Raises:
        IsADirectoryError: a folder is there already.
        ModuleNotFoundError: plotly is not installed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_report(Run("birds", [{"step": 9, "weight/mass": 0.1}], {}), f"{folder}/report.html")
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"a report should be written to a file: found the folder {path}; name a file in it")
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("write_report needs plotly: pip install 'lightning-uncertainty[report]'") from error
    page = _page(run, get_plotlyjs())
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(page, encoding="utf-8", newline="\n")
    os.replace(part, path)


def _page(run: Run, plotly: str) -> str:
    parts = files("lightning_uncertainty.dashboards.report")
    template, style, program = (
        parts.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    drawn = charts(run)
    gaps = any(chart.axis == "gap" for chart in drawn)
    data = {
        "tasks": [{"name": task, "style": _style(index)} for index, task in enumerate(run.tasks)],
        "charts": [
            {"id": chart.id, "axis": chart.axis, "small": chart.small, "traces": chart.traces} for chart in drawn
        ],
    }
    return Template(template).substitute(
        title=escape(run.title),
        hashes=" ".join(f"'sha256-{_sha256(script)}'" for script in (plotly, program)),
        style=style,
        facts="\n".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in _facts(run)),
        intro=MEDIANS + ("; a gap near 0\u00a0% says that its σ is true." if gaps else "."),
        tall=" tall" if len(run.tasks) > MANY else "",
        tasks=_task_table(run),
        sections="\n".join(_section(name, [*group]) for name, group in groupby(drawn, lambda chart: chart.section)),
        links="\n".join(f'<a href="#{_anchor(name)}">{name}</a>' for name, _ in groupby(c.section for c in drawn)),
        config=_config_table(run.config),
        data=json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        plotly=plotly,
        program=program,
    )


def _sha256(script: str) -> str:
    """Return what the page's content security policy knows a script by."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _facts(run: Run) -> Iterable[tuple[str, str]]:
    """Yield what the head of the page says of the run, as HTML."""
    yield "Tasks", str(len(run.tasks))
    yield "Last step", _data(run.last_step, f"{run.last_step:,}")
    if run.weighting:
        yield "Weighting", f"<code>{escape(run.weighting)}</code>"
    for stage, curve in run.balanced.items():
        text = _data(curve.last)
        if len(curve.values) > 1:
            value, step = min(zip(curve.values, curve.steps, strict=True))
            text += f" <small>lowest {number(value)} at step {step:,}</small>"
        yield f"Balanced loss, {stage}", text


# -- charts ------------------------------------------------------------------------------------------------------------


def _section(name: str, drawn: list[Chart]) -> str:
    figures = "\n".join(_figure(chart) for chart in drawn)
    kind = "charts small" if drawn[0].small else "charts"
    return f"""<section id="{_anchor(name)}" aria-labelledby="{_anchor(name)}-heading">
<h2 id="{_anchor(name)}-heading">{name}</h2>
<p class="intro">{INTRO[name]}</p>
<div class="{kind}">
{figures}
</div>
</section>"""


def _figure(chart: Chart) -> str:
    names = list(dict.fromkeys(trace["name"] for trace in chart.traces))
    label = escape(f"Chart by step: {chart.title}, {'; '.join(names)}. {chart.caption}")
    over = f'<p class="over">{escape(chart.id.split("-")[1])}</p>\n' if chart.small else ""
    return f"""<figure data-chart="{escape(chart.id)}">
{over}<h3>{escape(chart.title)}</h3>
<figcaption>{escape(chart.caption)}</figcaption>
<div class="plot" role="img" aria-label="{label}"></div>
</figure>"""


def _anchor(section: str) -> str:
    return {"σ": "sigma"}.get(section, section.lower())


def _style(index: int) -> dict[str, Any]:
    return {"colour": index % COLOURS, "dash": DASHES[index // COLOURS % len(DASHES)]}


# -- tables ------------------------------------------------------------------------------------------------------------


def _task_table(run: Run) -> str:
    """Return the table of where every task has ended; columns that are empty for all are left out."""
    columns = {
        "Task": [
            _swatch(index) + _two(escape(task), run.likelihoods.get(task)) for index, task in enumerate(run.tasks)
        ],
        "Loss": [_ended(run, "loss", task) for task in run.tasks],
        "σ": [_two(_ended(run, "sigma", task), run.sigma_is.get(task)) for task in run.tasks],
        "Gap": [_ended(run, "sigma_gap", task, "+") for task in run.tasks],
        "Weight": [_ended(run, "weight", task) for task in run.tasks],
        "Share": [_ended(run, "loss_share", task, "-") for task in run.tasks],
        "Held-out": [_latest(run, task) for task in run.tasks],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    kind = {name: "" if name in ("Task", "Held-out") else ' class="number"' for name in columns}
    head = "".join(f'<th scope="col"{kind[name]}>{name}</th>' for name in columns)
    body = ""
    for index, (first, *cells) in enumerate(zip(*columns.values(), strict=True)):
        named = zip([*columns][1:], cells, strict=True)
        rest = "".join(f'<td{kind[name]} data-label="{name}">{cell}</td>' for name, cell in named)
        body += f'<tr data-task="{index}"><th scope="row">{first}</th>{rest}</tr>\n'
    return f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>"


def _swatch(index: int) -> str:
    style = _style(index)
    return (
        f'<svg class="swatch c{style["colour"]}" viewBox="0 0 28 10" aria-hidden="true">'
        f'<path d="M1 5H27" stroke-dasharray="{style["dash"]}"/></svg>'
    )


def _two(text: str, below: str | None) -> str:
    """Return what a cell holds, with a smaller line below it."""
    return f"<span>{text}<small>{escape(below)}</small></span>" if text and below else text


def _ended(run: Run, kind: str, task: str, sign: str = "") -> str:
    """Return the median of the last rows of a task's curve; as a percentage where there is a format's sign."""
    curve = run.training(kind, task)
    if curve is None:
        return ""
    value = curve.ended
    return _data(value, f"{100 * value:{sign}.1f} %" if sign else number(value))


def _latest(run: Run, task: str) -> str:
    """Return the latest held-out metrics of a task, or its losses where it has none."""
    found = {(metric, stage): curve for (stage, name, metric), curve in run.held_out.items() if name == task}
    shown = [where for where in found if where[0] != "loss"] or list(found)
    lines = []
    for metric in dict.fromkeys(metric for metric, _ in shown):
        values = [(stage, found[metric, stage].last) for stage in STAGES if (metric, stage) in found]
        numbers = ", ".join(f"{_data(value)} <small>{stage}</small>" for stage, value in values)
        lines.append(f"<div>{escape(run.label(task, metric))} <span>{numbers}</span></div>")
    return "".join(lines)


def _data(value: float, text: str = "") -> str:
    """Return a number for people, with all its digits for machines."""
    return f'<data value="{value!r}">{text or number(value)}</data>'


def _config_table(config: Mapping[str, Any]) -> str:
    rows = [f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in _flat(config)]
    return "<tbody>\n" + "\n".join(rows or ["<tr><td>The logger kept none.</td></tr>"]) + "\n</tbody>"


def _flat(value: Any, path: str = "") -> Iterable[tuple[str, str]]:
    """Yield every leaf of nested mappings and lists, with the keys that lead to it."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{path}.{index}")
    elif isinstance(value, list | tuple):
        yield path, ", ".join(map(str, value))
    elif path:
        yield path, str(value) or "–"
