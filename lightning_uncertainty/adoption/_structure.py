"""What is read off a host: the LightningModule that it is, and the objects that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["base_of", "held_by"]


def base_of(host: type) -> Any:
    """Return the LightningModule of either namespace that a class is of; None where it is of none."""
    return next((one for one in host.__mro__ if one.__name__ == "LightningModule"), None)


def held_by(host: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the objects with attributes that a host holds beside its modules, by name."""
    for name, value in vars(host).items():
        if not name.startswith("_") and hasattr(value, "__dict__") and not isinstance(value, type):
            yield name, value
