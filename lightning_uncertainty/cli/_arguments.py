"""What arguments say before they are parsed: the class of the model, and a checkpoint with what it was made of."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

__all__ = ["Asked", "asked", "differences", "made_of", "still_asked"]


@dataclass
class Asked:
    """What the arguments ask for.

    Attributes:
        classes: import paths of classes by their path below `model`, "" for that of the model.
        ckpt_path: the checkpoint; None where there is none.
    """

    classes: dict[str, str] = field(default_factory=dict)
    ckpt_path: str | None = None


def asked(arguments: Sequence[str] | Mapping[str, Any], command: str | None = None) -> Asked:
    """Return what arguments ask for, on the command line and in the files that they name.

    Args:
        arguments: as of `sys.argv`, or a configuration.
        command: the subcommand, whose entries a configuration may have under its name.

    Example:
        >>> asked(["fit", "--model=nets.Net", "--config", "{ckpt_path: last.ckpt}"])
        Asked(classes={'': 'nets.Net'}, ckpt_path='last.ckpt')
    """
    if not isinstance(arguments, Sequence):
        return _asked_by(arguments, command)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", "-c", action="append", default=[])
    parser.add_argument("--ckpt_path")
    try:
        own, others = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError:  # the parser proper says what is wrong
        return Asked()
    found = Asked()
    for one in [*(_asked_by(_read(config), command) for config in own.config), _asked_by(own, None)]:
        found = Asked(found.classes | one.classes, one.ckpt_path or found.ckpt_path)
    for option, following in zip(others, [*others[1:], ""], strict=False):
        if named := re.fullmatch(r"--model((?:\.\w+)*?)(?:\.class_path|\.help)?(?:=(.*))?", option, re.DOTALL):
            value = following if named[2] is None else named[2]
            found.classes |= dict(_classes(_read(value) if value.startswith("{") else value, named[1][1:]))
    return found


def _asked_by(config: Any, command: str | None) -> Asked:
    entries = config if isinstance(config, Mapping) else vars(config) if hasattr(config, "__dict__") else {}
    entries = entries.get(command) or entries
    model = entries.get("model")
    return Asked(dict(_classes({"class_path": model} if isinstance(model, str) else model)), entries.get("ckpt_path"))


def _classes(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the class paths of a configuration, by path; a text at the root is one."""
    if isinstance(tree, str):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            if key == "class_path":
                yield path, str(value)
            elif isinstance(value, Mapping):
                yield from _classes(value, f"{path}.{key}".lstrip("."))


def _read(config: str) -> Any:
    """Return a configuration of a file or of a text; nothing where it cannot be read, which the parser proper says."""
    try:
        path = Path(config)
        return yaml.safe_load(path.read_text(encoding="utf-8") if path.is_file() else config)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None


def made_of(ckpt_path: Any) -> dict[str, Any]:
    """Return the model's part of the configuration that the command line made a checkpoint of.

    Args:
        ckpt_path: a file, or the folder of a sharded one; anything else has none.

    Returns:
        The model's arguments, with a class below `class_path` and `init_args`; empty where no command line made the
        checkpoint, or where it cannot be read, which the Trainer says.
    """
    path = Path(str(ckpt_path))
    path = path / "meta.pt" if path.is_dir() else path
    if not path.is_file():
        return {}
    try:
        found = torch.load(path, map_location="cpu", weights_only=True).get("hyper_parameters", {})
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, AttributeError):
        return {}
    if not isinstance(found, dict) or found.pop("_instantiator", None) is None:
        return {}
    class_path = found.pop("_class_path", None)
    return {"class_path": class_path, "init_args": found} if class_path else found


def still_asked(made: Mapping[str, Any], classes: Mapping[str, str]) -> dict[str, Any]:
    """Return a checkpoint's arguments without those of classes in whose place others are asked for.

    Example:
        >>> still_asked({"net": {"class_path": "nets.Net", "init_args": {"width": 8}}, "samples": 4}, {"net": "Wide"})
        {'samples': 4}
    """
    root = {"model": deepcopy(dict(made))}
    for path, asked_for in classes.items():
        *above, last = f"model.{path}".rstrip(".").split(".")
        place: Any = root
        for key in above:
            place = place.get(key) if isinstance(place, Mapping) else None
        node = place.get(last) if isinstance(place, dict) else None
        if isinstance(node, Mapping) and not f".{node.get('class_path')}".endswith(f".{asked_for}"):
            del place[last]
    return root.get("model", {})


def differences(given: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[str]:
    """Yield what of a configuration is otherwise than in a checkpoint, a line each.

    Example:
        >>> print(*differences({"samples": 4, "net": {"width": 8}}, {"samples": 1, "net": {"width": 8}}))
        model.samples: 4 (in the checkpoint 1)
    """
    ours, theirs = dict(_leaves(given)), dict(_leaves(made))
    for path in dict.fromkeys([*ours, *theirs]):
        here, there = ours.get(path), theirs.get(path)
        if here != there:
            here, there = ("not given" if value is None else value for value in (here, there))
            yield f"model.{path}: {here} (in the checkpoint {there})"


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}".lstrip("."))
    else:
        yield path, tree
