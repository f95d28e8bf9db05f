"""What could be named as a part of a host's loss, found by running one of its steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import new_class
from typing import Any

import torch
from torch import Tensor

from lightning_uncertainty.adoption._hosts import check_host
from lightning_uncertainty.adoption._naming import as_part
from lightning_uncertainty.adoption._one_step import Looked, OneBatch, has_loaders, quietly, trainer_of
from lightning_uncertainty.adoption._probing import Probe
from lightning_uncertainty.adoption._watch import Plan, Watch
from lightning_uncertainty.adoption._weights import candidates, weight_of
from lightning_uncertainty.adoption.adopting import is_adopted, unadopt
from lightning_uncertainty.adoption.description import CURVED, TRAINED, UNUSED, Candidate, Description
from lightning_uncertainty.adoption.parts import Part

__all__ = ["describe"]


def describe(
    module: Any, data: Any = None, *, weights: bool = True, run: Callable[[Any], Any] | None = None
) -> Description:
    """Run one step of a host and list what could be named as a part of its loss, with values.

    The step runs in a copy of the module, by a Trainer on the CPU, so that module and data stay as they are. A part
    stands there under all its names: what is logged, what a module, method or function returns, and weights that
    multiply it. Their `Σ weight · loss`, over parts that do not contain each other, is the host's loss; where it is no
    such sum, as a product, root or norm of losses, these are no parts, and the description says so.

    Args:
        module: a LightningModule, adopted or not.
        data: a batch, or a DataLoader, several of them, or a LightningDataModule; None is the module's own loader.
        weights: whether to look for weights among the host's numbers, which runs the step once for each.
        run: in place of `data`, what trains a module, for hosts that need a Trainer of their own; it is given the copy,
            and interrupted after the first step.

    Returns:
        A description; `print` it.

    Raises:
        TypeError: the module cannot be adopted.
        RuntimeError: the step made no loss.

    Example:
        >>> from pytorch_lightning import LightningModule
        >>> from torch import nn
        >>> from torch.nn import functional as F
        >>> class Theirs(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net, self.far = nn.Linear(4, 2), 0.5
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         made = self.net(batch)
        ...         near = F.mse_loss(made[:, 0], batch[:, 0])
        ...         self.log("near", near)
        ...         return near + self.far * made[:, 1].abs().mean()
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), 0.1)
        >>> found = describe(Theirs(), torch.ones(2, 4))
        >>> [part.names[0] for part in found.candidates]
        ['log:near', 'weight:far']
    """
    try:
        host = copy.deepcopy(module)
    except Exception as error:
        raise RuntimeError(
            f"describe looks at a copy of a module: found one that cannot be copied: {error}; give one that was just "
            "built, before it keeps tensors of a graph"
        ) from error
    if is_adopted(host):
        host = unadopt(host)
    check_host(host)
    kind: Any = type(host)
    seen = _Seen()
    host.__class__ = _probed(kind, seen, weights, stop=run is not None)
    with quietly(), torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
        if run is not None:
            with suppress(Looked):
                run(host)
            return _described(kind, seen)
        trainer = trainer_of(kind)
        if data is None or hasattr(data, "train_dataloader"):
            trainer.fit(host, datamodule=data)
        else:
            trainer.fit(host, data if has_loaders(data) else OneBatch(data))
    return _described(kind, seen)


def _described(kind: type, seen: _Seen) -> Description:
    if not seen.totals:
        raise RuntimeError(
            f"a host's step should make a loss: found none in {kind.__name__}; give a batch that it trains on"
        )
    return Description(kind.__name__, seen.totals[0], tuple(seen.candidates), seen.unusable, seen.notes)


class _Seen:
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

    def keep(self, reached: Callable[[dict[str, Part]], set[str]]) -> None:
        """Keep those names of calls and functions that a step shows when it is watched for them."""
        names = [name for found in self.candidates for name in found.names if not name.startswith("log:")]
        shown = reached({name: as_part(name) for name in names})
        kept = [
            Candidate(
                tuple(name for name in found.names if name not in names or name in shown), found.loss, found.weight
            )
            for found in self.candidates
        ]
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


def _probed(kind: Any, seen: _Seen, weights: bool, stop: bool) -> Any:
    """Return a class whose first training step is looked at."""

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if seen.probe is not None:
            return kind.training_step(self, *args, **kwargs)
        seen.probe, state = Probe(self), torch.get_rng_state()
        given = copy.deepcopy((args, kwargs))  # a host may change its batch
        before = {} if self.automatic_optimization else copy.deepcopy(self.state_dict())
        with seen.probe.on():
            returned = kind.training_step(self, *args, **kwargs)
        if self.automatic_optimization:
            seen.take(_loss_of(returned))

        def again() -> list[Any]:
            """Run the step once more, and return its losses."""
            args, kwargs = copy.deepcopy(given)
            with torch.random.fork_rng():
                torch.set_rng_state(state)  # the same dropout
                if not self.automatic_optimization:
                    self.load_state_dict(before)  # it has stepped
                seen.trial = []
                try:
                    returned = kind.training_step(self, *args, **kwargs)
                    return seen.trial if not self.automatic_optimization else [_loss_of(returned)]
                finally:
                    seen.trial = None

        seen.keep(lambda parts: _reached(self, parts, again))
        for path, old in candidates(self) if weights else ():
            loss = weight_of(self, path, again)
            if loss is not None:
                seen.add_weight(path, loss, old)
        if stop:
            raise Looked
        return returned

    def log(self: Any, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if seen.probe is not None and seen.trial is None:
            seen.probe.log(name, value)
        kind.log(self, name, value, *args, **kwargs)

    def manual_backward(self: Any, loss: Any, *args: Any, **kwargs: Any) -> None:
        if seen.trial is not None:
            seen.trial.append(loss)
            return
        seen.take(loss)
        kind.manual_backward(self, loss, *args, **kwargs)

    training_step.__wrapped__ = kind.training_step  # type: ignore[attr-defined] # Lightning reads the signature
    members = {"training_step": training_step, "log": log, "manual_backward": manual_backward}
    return new_class(kind.__name__, (kind,), {}, lambda names: names.update(members))


def _note_on(weight: Tensor, edges: list[Any]) -> str:
    """Say what `adopt` would say of a part with this weight, given where other parts are; nothing of most."""
    if not weight.requires_grad:
        return "" if weight.item() else UNUSED
    try:
        again = torch.autograd.grad(weight.sum(), edges, allow_unused=True, retain_graph=True)
    except RuntimeError:  # of what has no second derivative
        return CURVED
    return CURVED if any(curved is not None and bool(curved.any()) for curved in again) else TRAINED


def _loss_of(returned: Any) -> Any:
    return returned.get("loss") if isinstance(returned, Mapping) else returned


def _reached(host: Any, parts: Mapping[str, Part], again: Callable[[], Any]) -> set[str]:
    """Return which parts a step shows when it is watched for them: a function may be held where nobody looks."""
    try:
        with Watch(host, Plan(parts)) as watch:
            again()
    except Exception:
        return set(parts)
    return {name for name in parts if watch.reached(name)}
