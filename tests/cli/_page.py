"""Tables of what the parsers say of options, as the guide's page on the command line has them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from jsonargparse import auto_cli, capture_parser

from lightning_uncertainty.cli import MultiTaskCLI
from lightning_uncertainty.cli._compare import CompareCLI
from lightning_uncertainty.cli._completion import subparsers
from lightning_uncertainty.cli.commands import PROGRAM, commands

LIGHTNINGS = ("config", "seed_everything", "trainer", "model", "data", "monitor", "help", "print_config", "print_shtab")


def parsers():
    """Return the parser of every command by name."""
    simple = capture_parser(lambda: auto_cli(commands(), prog=PROGRAM))
    trainer = capture_parser(MultiTaskCLI)
    return {**subparsers(simple), **subparsers(trainer), "compare": capture_parser(CompareCLI)}


def table(parser, group=""):
    """Return a table of the options of a group, or of those of no group but Lightning's own."""
    lines = ["| option | default | what it is |", "|---|---|---|"]
    for action in parser._actions:
        name = (action.option_strings or [action.dest])[-1].strip("-+")
        of, _, option = name.partition(".")
        if (
            (of == group and option and not option.endswith(".help"))
            if group
            else (not option and of not in LIGHTNINGS)
        ):
            shown = f"--{name}" if action.option_strings else name.upper()
            lines.append(f"| `{shown}` | {default(action)} | {said(action)} |")
    return "\n".join(lines)


def default(action):
    value = action.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return (
        f"`{value}`" if isinstance(value, (int, str, list, Path)) and value != argparse.SUPPRESS and value != "" else ""
    )


def said(action):
    text = " ".join(str(action.help or "").split())
    return re.sub(r"\s*\((required|default|type|known)\b.*", "", text)
