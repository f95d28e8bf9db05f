"""What is a number, of what users give."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor

__all__ = ["by_name", "is_number"]


def is_number(value: Any) -> bool:
    """Whether a value is one real number, be it Python's, numpy's or a 0-dimensional tensor; NaN and inf are.

    Example:
        >>> [is_number(value) for value in (1, 2.5, None, "3", [4.0], 1j)]
        [True, True, False, False, False, False]
    """
    if isinstance(value, Tensor):
        return not value.dim() and not value.is_complex()
    return isinstance(value, Real)


def by_name(values: Any, what: str, form: str = "{'depth': 1.0}") -> dict[str, Any]:
    """Return a mapping as a dict, empty where it is None.

    Raises:
        ValueError: it is no mapping.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} should be given by task name, as in {form}: found {values!r}")
    return dict(values)
