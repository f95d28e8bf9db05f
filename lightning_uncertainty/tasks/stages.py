"""The stages of a fit."""

from __future__ import annotations

from typing import Literal

__all__ = ["EVALUATION", "STAGES", "Stage"]

Stage = Literal["train", "val", "test"]
"""What a step is for."""

EVALUATION = ("val", "test")
STAGES = ("train", *EVALUATION)
