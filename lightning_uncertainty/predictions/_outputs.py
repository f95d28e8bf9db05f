"""What a network must return for its tasks to be told apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["by_task"]


def by_task(outputs: Any, source: str) -> Mapping[str, Tensor]:
    """Return the outputs, which are by task."""
    if not isinstance(outputs, Mapping):
        raise ValueError(
            f"{source} should return outputs by task: found {type(outputs).__name__}; return a dict of tensors"
        )
    return outputs
