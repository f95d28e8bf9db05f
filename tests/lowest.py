"""The lowest versions that pyproject.toml allows, as pins for pip: `python -m tests.lowest test`.

Pins of the extras that are named, of those that they bring and of what the package itself needs; torch stays that of
constraints.txt. Those of the extra `workspace` are asked for alone: it needs a newer wandb than the package.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

APART = "workspace"
OWN = "lightning-uncertainty"
PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def requirements(group: str, text: str) -> list[str]:
    """Return what a list of pyproject.toml holds, one a line (there is no `tomllib` in Python 3.10)."""
    [block] = re.findall(rf"^{group} = \[$(.*?)^\]$", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r'^    "([^"]+)"', block, flags=re.MULTILINE)


def pins(extra: str, text: str) -> dict[str, str]:
    """Return the lowest version by package, extras of it included, of an extra and of what it brings.

    Raises:
        ValueError: a requirement has no lower bound.
    """
    found: dict[str, str] = {}
    wanted = ["dependencies"] * (extra != APART) + [extra]
    for group in wanted:  # it grows
        for requirement in requirements(group, text):
            name, extras, bound = re.fullmatch(r"([\w-]+)(?:\[([\w,]+)\])?(.*)", requirement).groups()
            if name == OWN:
                wanted += [each for each in extras.split(",") if each not in {*wanted, APART}]
                continue
            if not re.fullmatch(r">=[\d.]+", bound):
                raise ValueError(f"a requirement should be name>=version: found {requirement!r} in {group}")
            name += f"[{extras}]" if extras else ""
            found[name] = max(found.get(name, "0"), bound[2:], key=lambda version: [*map(int, version.split("."))])
    found.pop("torch", None)
    return found


if __name__ == "__main__":
    for name, version in pins(sys.argv[1], PROJECT.read_text(encoding="utf-8")).items():
        print(f"{name}=={version}")
