"""A page of the guide shows a notebook: cells and what they put out, as they are committed.

A page names its notebook in a fence, and has its own title:

    ```{notebook} penguins.ipynb
    ```
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "notebooks"
MARK = re.compile(r"^```\{notebook\} (\S+)\n```$", flags=re.MULTILINE)
COLOUR = re.compile(r"\x1b\[[\d;]*m")


def fence(kind: str, text: str) -> str:
    """Return a block of Markdown, whose fence no line of the text can close."""
    ticks = "`" * max([3, *(len(run) + 1 for run in re.findall("`{3,}", text))])
    return f"{ticks}{kind}\n{text.rstrip()}\n{ticks}"


def shown(output: dict[str, Any]) -> str:
    """Return what a cell has put out: a picture, a table or text."""
    data = output.get("data", {})
    if "image/png" in data:
        return f"![what the cell above draws](data:image/png;base64,{''.join(data['image/png']).strip()})"
    if table := re.search(r"<table.*?</table>", "".join(data.get("text/html", "")), flags=re.DOTALL):
        return fence("{raw} html", f'<div class="output">{table[0]}</div>')
    return fence("text", COLOUR.sub("", "".join(output.get("text") or data["text/plain"])))


def markdown(path: Path) -> str:
    """Return a notebook as Markdown, without its title."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(fence("python", source) if cell["cell_type"] == "code" else source)
        parts += map(shown, cell.get("outputs", []))
    return re.sub(r"\A# .*\n+", "", "\n\n".join(parts))


def show(app: Any, page: str, source: list[str]) -> None:
    """Put notebooks in the place of their fences."""
    for name in MARK.findall(source[0]):
        app.env.note_dependency(FOLDER / name)
    source[0] = MARK.sub(lambda mark: markdown(FOLDER / mark[1]), source[0])
