"""The table at the end of a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_uncertainty.likelihoods import Likelihood

__all__ = ["render", "task_table"]


def task_table(likelihoods: Mapping[str, Likelihood], row: Mapping[str, Mapping[str, float]], steps: int) -> str:
    """Return the table of a row: likelihood, σ and its meaning, gap, weight, share and loss of every task in it."""
    columns = ["task", "likelihood", "loss", "σ", "σ/σ*-1", "weight", "share", "σ is"]
    lines = []
    for task in row["loss"]:
        likelihood = likelihoods[task]
        number = {kind: values.get(task) for kind, values in row.items()}
        lines.append([
            task,
            likelihood.name,
            _format(number["loss"]),
            _format(number.get("sigma")),
            _format(number.get("sigma_gap"), "+.1%"),
            _format(number["weight"]),
            _format(number.get("weight_share"), ".1%"),
            likelihood.meaning if number.get("sigma") is not None else "",
        ])  # fmt: skip
    return render(f"Task uncertainty after {steps} steps", columns, lines)


def render(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table as text: rich's where it is installed, plain else.

    Example:
        >>> "4.20" in render("Tasks", ["task", "σ"], [["depth", "4.20"]])
        True
    """
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ModuleNotFoundError:
        widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
        rows = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in (columns, *lines)]
        return "\n".join([title, *(row.rstrip() for row in rows)])
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in (columns[0], columns[1], columns[-1]) else "right")
    for line in lines:
        table.add_row(*map(escape, line))
    console = Console(width=200)  # a table that wraps inside its cells cannot be read
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def _format(number: float | None, spec: str = ".4g") -> str:
    return "" if number is None else format(number, spec)
