"""A metric with the states of all processes that observed something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torchmetrics import Metric

__all__ = ["over_ranks"]

PLAIN = (bool, int, float, str, Enum, torch.Size, torch.dtype)


class _Part(NamedTuple):
    """What one process has of a metric: its states, how often it was updated, and what else it knows."""

    states: dict[str, Any]
    updates: int
    plain: dict[str, Any]


@contextmanager
def over_ranks(metric: Metric, observed: bool) -> Iterator[None]:
    """Give a metric, within, the states of those processes that observed something, of which there is one at least.

    torchmetrics gathers the tensors of every process one by one, and waits for ever, or dies, where one has none, or
    more of them than another. Here each sends all that it has in one message. A metric that is not to be synchronised,
    or has a way of its own to be (`dist_sync_fn`), stays as it is. All processes come here alike.

    Args:
        metric: with the metrics within it, as those of a wrapper.
        observed: whether this process has anything to send.
    """
    available = metric.distributed_available_fn
    if not metric._to_sync or metric.dist_sync_fn is not None or available is None or not available():
        yield
        return
    metrics = [part for part in metric.modules() if isinstance(part, Metric)]
    gathered: list[Any] = [None] * distributed.get_world_size(metric.process_group)
    own = [_part(part) for part in metrics] if observed else None
    distributed.all_gather_object(gathered, own, group=metric.process_group)
    there = [parts for parts in gathered if parts is not None]
    kept = [(part, name, getattr(part, name)) for part in metrics for name in _changed(part)]
    try:
        for part, *parts in zip(metrics, *there, strict=True):
            if not observed:
                vars(part).update(parts[0].plain)
            _merge(part, parts)
        yield
    finally:
        for part, name, before in kept:
            setattr(part, name, before)


def _changed(metric: Metric) -> list[str]:
    return [*metric._defaults, "_to_sync", "_update_count", "_computed"]


def _part(metric: Metric) -> _Part:
    plain = {name: value for name, value in vars(metric).items() if isinstance(value, PLAIN)}
    for name in (*_changed(metric), "training"):
        plain.pop(name, None)
    states = {name: _on(torch.device("cpu"), getattr(metric, name)) for name in metric._defaults}
    return _Part(states, metric._update_count, plain)


def _merge(metric: Metric, parts: list[_Part]) -> None:
    """Set the states that torchmetrics would have after it gathered these."""
    device = torch.device("cpu") if metric.compute_on_cpu else metric.device
    for name, reduction in metric._reductions.items():
        values = [_on(device, part.states[name]) for part in parts]
        setattr(metric, name, values[0] if len(values) == 1 else _reduced(values, reduction))
    metric._to_sync, metric._computed = False, None
    metric._update_count = sum(part.updates for part in parts)


def _reduced(values: list[Any], reduction: Callable[[Any], Any] | str | None) -> Any:
    whole: Tensor | list[Any]
    if isinstance(values[0], Tensor):  # of one number by one shape: torchmetrics 1.4 leaves it as [] or [1]
        whole = torch.stack([value.reshape(values[0].shape) for value in values])
    else:
        whole = [one for value in values for one in value]
    return reduction(whole) if callable(reduction) else whole


def _on(device: torch.device, state: Any) -> Any:
    """Return a state, a tensor or a list of what a metric keeps, on a device."""
    if isinstance(state, Tensor):
        return state.detach().to(device)
    return [_on(device, one) for one in state] if isinstance(state, list) else state
