"""The table at the end of a fit: numbers first, then their look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_uncertainty._show import render

__all__ = ["COLUMNS", "Cell", "render_tasks", "task_rows"]

Cell = str | float | None

COLUMNS = {  # name of the column, its header and format in print
    "task": ("task", ""),
    "likelihood": ("likelihood", ""),
    "loss": ("loss", ".4g"),
    "sigma": ("σ", ".4g"),
    "sigma_gap": ("σ/σ*-1", "+.1%"),
    "weight": ("weight", ".4g"),
    "loss_share": ("share", ".1%"),
    "sigma_is": ("σ is", ""),
}


def task_rows(
    numbers: Mapping[str, Mapping[str, float]], likelihoods: Mapping[str, str], meanings: Mapping[str, str]
) -> list[list[Cell]]:
    """Return a row for every task, in the order of `COLUMNS`; None where a task has no such entry.

    Args:
        numbers: by kind and task.
        likelihoods: their names, by task, of all tasks.
        meanings: what σ is, by task.

    Example:
        >>> task_rows({"loss": {"depth": 4.0}, "weight": {"depth": 1.0}}, {"depth": "gaussian"}, {})
        [['depth', 'gaussian', 4.0, None, None, 1.0, None, None]]
    """
    tasks = list(likelihoods)
    table: dict[str, Mapping[str, Cell]] = {
        **numbers,
        "task": dict(zip(tasks, tasks, strict=True)),
        "likelihood": likelihoods,
        "sigma_is": meanings,
    }
    return [[table.get(column, {}).get(task) for column in COLUMNS] for task in tasks]


def render_tasks(rows: Sequence[Sequence[Cell]], steps: int) -> str:
    """Return the rows of `task_rows` as text."""
    formats = [spec for _, spec in COLUMNS.values()]
    lines = [
        ["" if cell is None else format(cell, spec) for cell, spec in zip(row, formats, strict=True)] for row in rows
    ]
    return render(f"Task uncertainty after {steps} steps", [header for header, _ in COLUMNS.values()], lines)
