"""Modules in the mode that a prediction needs, and back in their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["switched"]


@contextmanager
def switched(module: nn.Module, trains: Callable[[nn.Module], bool]) -> Iterator[None]:
    """Put every module inside in training or evaluation mode, each on its own, and give it its mode back after."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = trains(part)  # not train(): that speaks for the children too
        yield
    finally:
        for part, mode in modes:
            part.training = mode
