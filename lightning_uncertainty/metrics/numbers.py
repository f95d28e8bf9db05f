"""The numbers of a metric's result, by name, and what they are called before there is a result."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["MOST", "made_up", "names_of", "numbers_of"]

MOST = 1000
"""How many numbers of one metric are logged at most."""


def numbers_of(value: Any, name: str = "") -> dict[str, Tensor]:
    """Return the numbers of a result by name: keys and indices with "/" between, "" where it is one number.

    A dot becomes an underscore, as names of modules have none.

    Raises:
        TypeError: there is something that is no number.

    Example:
        >>> numbers_of({"low": torch.tensor([1.0, 2.0]), "high": torch.tensor(3.0)})
        {'low/0': tensor(1.), 'low/1': tensor(2.), 'high': tensor(3.)}
    """
    if value is None:
        return {}
    if isinstance(value, bool | int | float):
        return {name: torch.tensor(float(value))}
    if isinstance(value, Tensor):
        if not value.dim():
            return {name: value}
        parts = [(str(index), part) for index, part in enumerate(value.unbind())]
    elif isinstance(value, Mapping):
        parts = [(str(key).replace(".", "_"), part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(str(index), part) for index, part in enumerate(value)]
    else:
        raise TypeError(f"a result should be made of numbers: found a {type(value).__name__}")
    found: dict[str, Tensor] = {}
    for key, part in parts:
        found |= numbers_of(part, f"{name}/{key}" if name else key)
    return found


@torch.no_grad()
def names_of(metric: Metric, *batch: Tensor) -> tuple[str, ...]:
    """Return the names of the numbers that a metric has of such a batch; it stays as it is, and so do generators.

    Raises:
        Exception: whatever the metric raises of it.
    """
    devices = [batch[0].device] if batch[0].is_cuda else []
    alone = copy.deepcopy(metric)
    alone.reset()
    for part in alone.modules():
        if isinstance(part, Metric):
            part._to_sync = False
    with torch.random.fork_rng(devices), torch.device(batch[0].device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone.update(*batch)
        return tuple(numbers_of(alone.compute()))


def made_up(prediction: torch.Size, label: torch.Size, like: Tensor, count: int = 8) -> tuple[Tensor, Tensor]:
    """Return predictions and labels `[count, ...]` of these shapes, always the same.

    Where predictions have a dimension more, they are probabilities of classes along it, the first.

    Args:
        prediction: shape of one.
        label: likewise.
        like: labels of the type wanted, floating-point, or integers of classes or events.
        count: how many.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    made, target = (
        torch.rand((count, *shape), generator=generator, dtype=torch.float32, device="cpu")
        for shape in (prediction, label)
    )
    classes = prediction[0] if len(prediction) > len(label) else 2
    if not like.is_floating_point():
        target = torch.arange(target.numel(), device="cpu").reshape(target.shape) % classes
    if len(prediction) > len(label):
        made = made.softmax(1)
    return made.to(like.device), target.to(like)
