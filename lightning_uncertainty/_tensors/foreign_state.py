"""What TorchJD's modules keep where torch does not look for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["changes", "plain_state", "restore", "seeded", "selected", "torchjd"]

State = dict[str, Any]

_OF_ANY_MODULE = frozenset(vars(nn.Module()))


def torchjd(room: str, caller: str) -> Any:
    """Return TorchJD's module of that name.

    Raises:
        ModuleNotFoundError: TorchJD is not installed.
    """
    try:
        return import_module(f"torchjd.{room}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{caller} needs TorchJD: pip install 'lightning-uncertainty[torchjd]'") from error


def plain_state(module: nn.Module, buffers: bool) -> State:
    """Return a copy of all numbers, texts and tensors that a module and its children keep as attributes.

    Builtins and tensors only; parameters are left out, and buffers unless asked for.
    """
    found: State = {}
    for path, part in module.named_modules():
        kept = {**vars(part), **(part._buffers if buffers else {})}
        for name, value in kept.items():
            if name not in _OF_ANY_MODULE:
                try:
                    found[f"{path}.{name}"] = _packed(value)
                except TypeError:  # what it is made of: functions, problems of a solver
                    continue
    return found


def changes(state: State, since: State) -> State:
    """Return the part of a state that is not what it was."""
    return {name: value for name, value in state.items() if name not in since or not _same(value, since[name])}


def restore(module: nn.Module, state: State, device: torch.device) -> None:
    """Give attributes back to a module."""
    for name, value in state.items():
        path, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(path), attribute, _unpacked(value, device))


def _packed(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, list | tuple):
        return type(value)(_packed(part) for part in value)
    raise TypeError(f"not plain: {type(value)}")


def _unpacked(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, dict):
        return getattr(torch, value["dtype"])
    if isinstance(value, list | tuple):
        return type(value)(_unpacked(part, device) for part in value)
    return value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b.to(a.device))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(*pair) for pair in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


@contextmanager
def selected(module: nn.Module, index: Tensor, count: int, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Have a module and its children see, of every vector with `count` numbers, those at an index alone.

    What they put in place of such a vector stays.
    """
    swapped: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []
    for part in module.modules():
        stores: tuple[dict[str, Any], ...] = (vars(part), part._buffers, part._parameters)
        for kept in stores:
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.shape == (count,):
                    swapped.append((kept, name, value, value.to(index.device, dtype)[index]))
    for kept, name, _, some in swapped:
        kept[name] = some
    try:
        yield
    finally:
        for kept, name, value, some in swapped:
            if kept[name] is some:
                kept[name] = value


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Have torch draw from a seed on this device and on the CPU, and go on afterwards as if it had not."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        yield
