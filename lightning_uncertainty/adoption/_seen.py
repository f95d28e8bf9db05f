"""What a look at a host's step has found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_uncertainty.adoption._naming import as_part
from lightning_uncertainty.adoption._probing import Probe
from lightning_uncertainty.adoption.description import CURVED, TRAINED, UNUSED, Candidate
from lightning_uncertainty.adoption.parts import Part

__all__ = ["Seen"]


class Seen:
    """What was found in a step."""

    def __init__(self) -> None:
        self.probe: Probe | None = None
        self.trial: list[Any] | None = None
        self.totals: list[float] = []
        self.candidates: list[Candidate] = []
        self.unusable: dict[str, str] = {}
        self.notes: dict[str, str] = {}

    def take(self, total: Any) -> None:
        """Look which numbers of the step a total is made of."""
        assert self.probe is not None
        if not isinstance(total, Tensor) or not total.requires_grad:
            return
        own = torch.autograd.graph.get_gradient_edge(total)
        scalars = [scalar for scalar in self.probe.scalars if scalar.edge != own]
        self.totals.append(float(total.detach()))
        edges: list[Any] = [scalar.edge for scalar in scalars]
        found: Any = torch.autograd.grad(total, edges, allow_unused=True, create_graph=True) if edges else ()
        for scalar, weight in zip(scalars, found, strict=True):
            if weight is None:
                continue
            names = tuple(sorted(scalar.names, key=self._order))
            why = _note_on(weight, edges)
            if why:
                self.notes[names[0]] = why
            if why != CURVED:
                self.candidates.append(Candidate(names, scalar.value, float(weight.detach())))
        used = {name for candidate in self.candidates for name in candidate.names} | self.notes.keys()
        for key, why in self.probe.logged.items():
            if why or f"log:{key}" not in used:
                self.unusable[key] = why or "it is the loss itself, or the loss does not depend on it"

    def keep(self, reached: Callable[[dict[str, Part]], dict[str, list[float]]]) -> None:
        """Keep those names of calls and functions that a step shows, with these values, when it is watched for them."""
        assert self.probe is not None
        every = {name for found in self.candidates for name in found.names}
        names = {name for name in every if not name.startswith("log:")}
        shown = reached({name: as_part(name) for name in names})

        def shows(name: str, loss: float) -> bool:
            return any(abs(value - loss) <= 1e-5 * abs(loss) for value in shown.get(name, ()))

        alike = any(shows(name, found.loss) for found in self.candidates for name in found.names)  # a step may change
        sure = (every - names) | (set() if alike else shown.keys() - self.probe.guessed)
        kept = []
        for found in self.candidates:
            heard = [name for name in found.names if name in sure or shows(name, found.loss)]
            double = {name.replace("@", ".forward@", 1) for name in heard if name.startswith("call:")}
            kept.append(Candidate(tuple(name for name in heard if name not in double), found.loss, found.weight))
        self.candidates = [found for found in kept if found.names]

    def _order(self, name: str) -> tuple[bool, int, bool, int]:
        """Return what the most natural names are first by; last are those that take follow=True."""
        kind, _, rest = name.partition(":")
        numbers = {} if self.probe is None else self.probe.logged
        followed = kind == "log" and bool(numbers.get(rest))
        return followed, ("log", "weight", "call", "function").index(kind), "@" not in name, len(name)

    def add_weight(self, path: str, loss: float, weight: float) -> None:
        """Take note of a weight: another name of what has its value, or a part of its own."""
        name = f"weight:{path}"
        for place, known in enumerate(self.candidates):
            if abs(known.loss - loss) <= 1e-5 * abs(loss) and abs(known.weight - weight) <= 1e-5 * abs(weight):
                names = tuple(sorted((*known.names, name), key=self._order))
                self.candidates[place] = Candidate(names, known.loss, known.weight)
                return
        self.candidates.append(Candidate((name,), loss, weight))


def _note_on(weight: Tensor, edges: list[Any]) -> str:
    """Say what `adopt` would say of a part with this weight, given where other parts are; nothing of most."""
    if not weight.requires_grad:
        return "" if weight.item() else UNUSED
    try:
        again = torch.autograd.grad(weight.sum(), edges, allow_unused=True, retain_graph=True)
    except RuntimeError:  # of what has no second derivative
        return CURVED
    return CURVED if any(curved is not None and bool(curved.any()) for curved in again) else TRAINED
