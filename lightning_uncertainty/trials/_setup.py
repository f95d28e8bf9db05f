"""What decides the results of trials, as text by name, so that a folder or a study holds those of one setup."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

__all__ = ["describe", "differences", "text_of"]

COSMETIC = {  # options of a Trainer that change no result
    *("logger", "log_every_n_steps", "default_root_dir", "enable_progress_bar", "enable_model_summary"),
    *("enable_checkpointing", "profiler"),
}


def describe(
    module: Any,
    data: Any,
    options: Mapping[str, Any],
    setup: Mapping[str, Any],
    settings: Collection[str] = (),
    *,
    attributes: bool = True,
) -> dict[str, str]:
    """Return tasks, network, hyper-parameters, data, Trainer options and what the user adds, by name.

    Of the network there are names and shapes, of the data the class, its hyper-parameters and the number of rows, of
    callbacks their attributes: what else decides the results, the user names in `setup`. Hyper-parameters that are
    settings differ among trials.

    Args:
        module: at one of the settings.
        data: as of `compare`.
        options: of the Trainer.
        setup: what the user adds.
        settings: their names.
        attributes: False is what was written before those of callbacks were.
    """

    def option(value: Any) -> str:
        if not attributes:
            return text_of(value)
        several = isinstance(value, tuple | list)
        return f"[{', '.join(map(_with_attributes, value))}]" if several else _with_attributes(value)

    helpers = set(module.auxiliary_tasks())
    tasks = {
        name: f"{text_of(likelihood)}{' (auxiliary)' if name in helpers else ''}"
        for name, likelihood in module.task_likelihoods().items()
    }
    shapes = {
        name: list(parameter.shape)
        for name, parameter in module.named_parameters()
        if not name.startswith("task_weighting.")
    }
    hyper_parameters = {name: text for name, text in _hyper_parameters(module).items() if name not in settings}
    digest = hashlib.sha256(repr(shapes).encode()).hexdigest()[:8]
    return {
        "tasks": ", ".join(f"{name}: {text}" for name, text in tasks.items()),
        "network": f"{type(module).__name__} of {len(shapes)} tensors ({digest})",
        **{f"hyper-parameter {name}": text for name, text in hyper_parameters.items()},
        "data": _describe_data(data),
        **{f"trainer.{name}": option(value) for name, value in options.items() if name not in COSMETIC},
        **{f"setup.{name}": text_of(value) for name, value in setup.items()},
    }


def differences(held: Mapping[str, str], given: Mapping[str, str]) -> str:
    """Return what is otherwise in two setups; empty where nothing is."""
    return "; ".join(
        f"{name} was {held.get(name, 'not given')} and is {given.get(name, 'not given')}"
        for name in dict.fromkeys([*held, *given])
        if held.get(name) != given.get(name)
    )


def _describe_data(data: Any) -> str:
    if isinstance(data, tuple | list):
        return ", ".join(_describe_loader(loader) for loader in data)
    if callable(data):
        return "made by a function"
    return f"{type(data).__name__}({', '.join(f'{name}={text}' for name, text in _hyper_parameters(data).items())})"


def _describe_loader(loader: Any) -> str:
    rows, size = getattr(loader, "dataset", loader), getattr(loader, "batch_size", None)
    count = f" of {len(rows)} rows" if hasattr(rows, "__len__") else ""
    return f"{type(loader).__name__}{count} in batches of {size}"


def _hyper_parameters(owner: Any) -> dict[str, str]:
    """Return what `save_hyperparameters` keeps; not modules, and not the weighting, which each trial has its own of."""
    kept = {name: value for name, value in owner.hparams.items() if not isinstance(value, nn.Module)}
    return {name: text_of(value) for name, value in kept.items() if name != "weighting" and not name.startswith("_")}


def text_of(value: Any) -> str:
    """Return what shows a value in every process alike: no addresses."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(text_of, value))}]"
    return re.sub(r"<([\w.]+) object at 0x[0-9a-f]+>| at 0x[0-9a-f]+", r"\1", repr(value))


def _with_attributes(value: Any) -> str:
    """Return the text of an object, and those of its public attributes that are plain values."""
    text = text_of(value)
    says_itself = text != f"{type(value).__module__}.{type(value).__qualname__}"
    if says_itself or any(kind.__name__ == "Checkpoint" for kind in type(value).__mro__):  # of paths, not of results
        return text
    plain = {name: found for name, found in sorted(vars(value).items()) if name[0] != "_" and _is_plain(found)}
    return f"{text}({', '.join(f'{name}={found!r}' for name, found in plain.items())})" if plain else text


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)  # paths are of a machine
