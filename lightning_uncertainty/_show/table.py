"""Tables of text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["render"]


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
    # a table that wraps inside its cells cannot be read; in a notebook it is text too
    console = Console(width=200, force_jupyter=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())
