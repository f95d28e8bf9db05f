"""What the fast tier runs of a product: a few cells; the others are its tail, under the mark `matrix`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

FEW = ("UncertaintyWeighting", "AnalyticUncertaintyWeighting", "GradientBalancing")  # learnt, followed, by gradients


def few(values: Iterable[Any], kept: Iterable[Any] = FEW, name: Any = lambda value: value) -> list[Any]:
    """Return parameters of which the fast tier runs those whose name is kept."""
    kept = set(kept)
    return [pytest.param(value, marks=() if name(value) in kept else pytest.mark.matrix) for value in values]
