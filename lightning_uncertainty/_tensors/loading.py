"""What torch.load may make of a checkpoint's hyper-parameters."""

from __future__ import annotations

from typing import Any

from torch.serialization import add_safe_globals

__all__ = ["Loadable"]


class Loadable:
    """A base of classes whose objects hyper-parameters may hold: they load under `weights_only=True`.

    torch then makes an object without a call of its `__init__` and gives it its attributes, which have to be such
    objects, builtins or tensors in their turn.

    Example:
        >>> import io, torch
        >>> class Setting(Loadable):
        ...     def __init__(self):
        ...         self.value = 3
        >>> Setting.__module__, Setting.__qualname__
        ('lightning_uncertainty._tensors.loading', 'Setting')
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        add_safe_globals([cls])
