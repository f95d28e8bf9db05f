"""What is public stands in `tests/public.txt`, path by path with its signature; all that is shown imports nothing else.

`python tests/test_public.py` writes the file anew, for whoever means to change what is public.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LISTED = Path(__file__).with_name("public.txt")
API = (ROOT / "docs/api.md").read_text(encoding="utf-8")
PACKAGE = "lightning_uncertainty"
DOORS = [
    PACKAGE,
    *(
        f"{PACKAGE}.{path.parent.name}"
        for path in sorted((ROOT / PACKAGE).glob("[!_]*/__init__.py"))
        if path.parent.name != "examples"
    ),
    *(f"{PACKAGE}.examples.{name}" for name in ("penguins", "scenes", "streets")),
]
SHOWN = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / "README.md", ROOT / "docs/gallery.py", ROOT / "docs/streets.py"),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
    *(ROOT / PACKAGE / "examples" / name for name in ("penguins.py", "penguins.yaml", "scenes.yaml", "toy.py")),
]


def documented():
    """Return the names of the API page by path, each with the members that are shown."""
    module, found = "", {}
    for line in API.splitlines():
        if line.startswith((".. currentmodule:: ", ".. automodule:: ")):
            module = line.split()[-1]
        elif named := re.match(r"\.\. (?:auto(?:class|function)|data):: (\w+)$", line):
            path, found[f"{module}.{named[1]}"] = f"{module}.{named[1]}", []
        elif members := re.match(r"   :members: ?(.*)$", line):
            found[path] = members[1].split(", ") if members[1] else methods(resolved(path))
        elif line == "   :inherited-members:":
            found[path] += [name for kind in resolved(path).__mro__[1:-1] for name in methods(kind)]
    return found


def methods(kind):
    return [name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")]


def resolved(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def shown(parameter):
    """Return a parameter with its default, in what is the same under all versions of Python and torch."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    default = parameter.default
    if default is inspect.Parameter.empty:
        return stars.get(parameter.kind, "") + parameter.name
    return f"{parameter.name}={getattr(default, '__name__', repr(default))}"


def signature(value):
    """Return the parameters of what can be called, in brackets; nothing for anything else."""
    if not (isinstance(value, type) or inspect.isfunction(value) or inspect.ismethod(value)):
        return ""
    parts, named = [], False
    for parameter in inspect.signature(value).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not named:
            parts += [] if any(part.startswith("*") for part in parts) else ["*"]
            named = True
        parts.append(shown(parameter))
    return f"({', '.join(parts)})"


def public():
    """Return a line for every public path, and one for every documented method."""
    lines = []
    for door in DOORS:
        for name in sorted(importlib.import_module(door).__all__):
            lines.append(f"{door}.{name}{signature(resolved(f'{door}.{name}'))}")
    for path, members in documented().items():
        lines += [f"{path}.{name}{signature(getattr(resolved(path), name))}" for name in members]
    return lines


def names_in(path):
    """Yield the dotted paths of this package that a file shows."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    if path.suffix == ".md":
        yield from re.findall(rf"class_path: ({PACKAGE}[\w.]*)", text)
        text = "\n".join(re.findall(r"^```(?:python|\{code-cell\})\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE))
    if path.suffix == ".yaml":
        yield from re.findall(rf"class_path: ({PACKAGE}[\w.]*)", text)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE)


def test_public_paths_and_signatures_are_those_listed():
    assert public() == LISTED.read_text(encoding="utf-8").splitlines()


def test_what_the_reference_names_is_public():
    lines = {line.partition("(")[0] for line in public()}
    assert [path for path in documented() if path not in lines] == []


@pytest.mark.parametrize("door", [door for door in DOORS if ".examples." not in door])
def test_what_is_public_is_in_the_reference(door):
    names = {path.rpartition(".")[2]: resolved(path) for path in documented()}
    assert {name for name in importlib.import_module(door).__all__ if name not in names} == set()
    for name in importlib.import_module(door).__all__:
        assert resolved(f"{door}.{name}") is names[name]


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.name)
def test_what_is_shown_imports_nothing_else(path):
    lines = {line.partition("(")[0] for line in public()}
    doors = {*DOORS, *(door.rpartition(".")[0] for door in DOORS)}
    assert [name for name in names_in(path) if name not in lines | doors] == []


if __name__ == "__main__":
    LISTED.write_text("".join(f"{line}\n" for line in public()), encoding="utf-8")
