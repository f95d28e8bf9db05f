"""What a step of a host showed, and a table of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_uncertainty._show import render

__all__ = ["Candidate", "Description"]

_SHOWN = 4

CURVED = "the host's loss is not linear in it, as in a product, root or norm, so that adopt would refuse it"
TRAINED = "the host trains its weight, so that adopt would refuse it without keep_host_weights=True"
UNUSED = "its weight is 0, as of a task that is switched off or beside a maximum, so that adopt would refuse it"


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
        notes: names of what the loss is made of and `adopt` would refuse, by why.
    """

    host: str
    total: float
    candidates: tuple[Candidate, ...]
    unusable: Mapping[str, str]
    notes: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            [found.names[0], f"{found.loss:.4g}", f"{found.weight:.4g}", ", ".join(found.names[1:_SHOWN])]
            for found in self.candidates
        ]
        title = f"What {self.host} could be adopted by: its loss was {self.total:.4g}"
        text = render(title, ["part", "loss", "host's weight", "or"], lines) if lines else f"{title}\n"
        notes = [f"log:{key} names no part: {why}" for key, why in self.unusable.items()]
        for why in dict.fromkeys(self.notes.values()):
            names = [name for name in self.notes if self.notes[name] == why]
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            notes.append(f"{', '.join(names[:_SHOWN])}{more}: {why}")
        return "\n".join([text, *notes])

    __repr__ = __str__
