"""What a step of a host showed, and a table of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_uncertainty._show import render

__all__ = ["Candidate", "Description"]

_SHOWN = 4


@dataclass(frozen=True)
class Candidate:
    """A part of a host's loss.

    Attributes:
        names: how it can be named, the most natural first.
        loss: its value in the step.
        weight: the host's weight on it, `d total / d loss`.
    """

    names: tuple[str, ...]
    loss: float
    weight: float


@dataclass(frozen=True)
class Description:
    """What a step of a host showed; `str` is a table.

    Attributes:
        host: the name of its class.
        total: the loss of its step.
        candidates: what could be named, in the order in which the step made it.
        unusable: keys that the host logs, by why they name no part.
    """

    host: str
    total: float
    candidates: tuple[Candidate, ...]
    unusable: Mapping[str, str]

    def __str__(self) -> str:
        lines = [
            [found.names[0], f"{found.loss:.4g}", f"{found.weight:.4g}", ", ".join(found.names[1:_SHOWN])]
            for found in self.candidates
        ]
        title = f"What {self.host} could be adopted by: its loss was {self.total:.4g}"
        text = render(title, ["part", "loss", "host's weight", "or"], lines)
        notes = [f"log:{key} names no part: {why}" for key, why in self.unusable.items()]
        return "\n".join([text, *notes])

    __repr__ = __str__
