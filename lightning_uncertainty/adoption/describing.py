"""What could be named as a part of a host's loss, found by running one of its steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import new_class
from typing import Any

from lightning_uncertainty.adoption._hosts import check_host
from lightning_uncertainty.adoption._one_step import Looked, drawn, looking, redrawing, trainer_of, ways_to_take
from lightning_uncertainty.adoption._probing import Probe
from lightning_uncertainty.adoption._seen import Seen
from lightning_uncertainty.adoption._watch import Plan, Watch
from lightning_uncertainty.adoption._weights import candidates, weight_of
from lightning_uncertainty.adoption.adopting import is_adopted, unadopt
from lightning_uncertainty.adoption.description import Description
from lightning_uncertainty.adoption.parts import Part

__all__ = ["describe"]


def describe(
    module: Any, data: Any = None, *, weights: bool = True, run: Callable[[Any], Any] | None = None
) -> Description:
    """Run one step of a host and list what could be named as a part of its loss, with values.

    The step runs in a copy of the module, by a Trainer on the CPU, so that module, data and global generators stay as
    they are; an iterator gives its next batch away. A part stands there under all its names: what is logged, what a
    module, method or function returns, and weights that multiply it. Their `Σ weight · loss`, over parts that do not
    contain each other, is the host's loss; where it is no such sum, as of a product, root or norm of losses, these are
    no parts, and the description says so.

    Args:
        module: a LightningModule, adopted or not.
        data: a batch, or what `trainer.fit` takes: a DataLoader, several of them, any iterable of batches, of which the
            first is taken, or a LightningDataModule; None is the module's own loader.
        weights: whether to look for weights among the host's numbers, which runs the step once for each.
        run: in place of `data`, what trains a module, for hosts that need a Trainer of their own; it is given the copy,
            and interrupted after the first step.

    Returns:
        A description; `print` it.

    Raises:
        TypeError: the module cannot be adopted.
        RuntimeError: the step made no loss, or does not run on the data, or the module cannot be copied.

    Example:
        >>> import torch
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
    if run is not None:
        host, seen = _copied(module, weights, stop=True)
        with looking(), suppress(Looked):
            run(host)
        return _described(module, seen)
    if data is None or hasattr(data, "train_dataloader"):
        host, seen = _copied(module, weights)
        with looking() as folder:
            trainer_of(type(host), folder).fit(host, datamodule=data)
        return _described(module, seen)
    failed: list[tuple[Seen, Exception]] = []
    with looking() as folder:
        for loader in ways_to_take(data):
            host, seen = _copied(module, weights)
            try:
                trainer_of(type(host), folder).fit(host, loader)
            except Exception as error:
                failed.append((seen, error))
            else:
                return _described(module, seen)
    if not failed:
        raise RuntimeError(f"describe should be given a batch: found an empty {type(data).__name__}")
    seen, first = failed[0]
    if seen.probe is None or seen.totals or loader is data:  # it is not the batch that the step fails of
        raise first
    raise RuntimeError(
        f"a host's step should run on what describe is given: found that {_kind_of(module)} raises "
        f"{type(first).__name__} on a {type(data).__name__} as its batch: {first}; give what trainer.fit takes, as a "
        "DataLoader, or one batch of it"
    ) from first


def _copied(module: Any, weights: bool, stop: bool = False) -> tuple[Any, Seen]:
    """Return a copy of a host whose first step is looked at, and what will be seen."""
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
    seen = Seen()
    host.__class__ = _probed(type(host), seen, weights, stop)
    return host, seen


def _kind_of(module: Any) -> str:
    return type(module).__name__


def _described(module: Any, seen: Seen) -> Description:
    if not seen.totals:
        raise RuntimeError(
            f"a host's step should make a loss: found none in {_kind_of(module)}; give a batch that it trains on"
        )
    return Description(_kind_of(module), seen.totals[0], tuple(seen.candidates), seen.unusable, seen.notes)


def _probed(kind: Any, seen: Seen, weights: bool, stop: bool) -> Any:
    """Return a class whose first training step is looked at."""

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if seen.probe is not None:
            return kind.training_step(self, *args, **kwargs)
        seen.probe, start = Probe(self), drawn()
        given = copy.deepcopy((args, kwargs))  # a host may change its batch
        args, kwargs = copy.deepcopy(given)
        before = {} if self.automatic_optimization else copy.deepcopy(self.state_dict())
        with seen.probe.on():
            returned = kind.training_step(self, *args, **kwargs)
        if self.automatic_optimization:
            seen.take(_loss_of(returned))

        def again() -> list[Any]:
            """Run the step once more, and return its losses."""
            args, kwargs = copy.deepcopy(given)
            with redrawing(start):  # the same dropout
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


def _loss_of(returned: Any) -> Any:
    return returned.get("loss") if isinstance(returned, Mapping) else returned


def _reached(host: Any, parts: Mapping[str, Part], again: Callable[[], Any]) -> dict[str, list[float]]:
    """Return what parts a step shows when it is watched for them: a function may be held where nobody looks."""
    try:
        with Watch(host, Plan(parts)) as watch:
            again()
    except Exception:  # one cannot be watched, or the step not run again
        alone = [{name: part} for name, part in parts.items()] if len(parts) > 1 else []
        shown = {name: values for one in alone for name, values in _reached(host, one, again).items()}
        return shown or ({name: [] for name in parts} if alone else {})
    sights = {name: [float(sight.value) for sight in watch.sights.get(name, ())] for name in parts}
    return {name: values for name, values in sights.items() if watch.reached(name)}
