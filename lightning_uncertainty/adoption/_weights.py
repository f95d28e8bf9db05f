"""The host's own weights, in a step leaves of its graph: a loss is `d total / d weight`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from lightning_uncertainty.adoption._paths import Keys, fetch, replaced, split_at_value
from lightning_uncertainty.adoption._structure import held_by
from lightning_uncertainty.adoption.parts import HostWeight

__all__ = ["WeightLeaves", "candidates", "numbers_of", "weight_of"]

_MOST = 64


class WeightLeaves:
    """Leaves in place of host weights, within an `ExitStack`.

    Attributes:
        leaves: of numbers, or of whole tensors of them.
        places: by task, which leaf, and the index into it.
    """

    def __init__(
        self, host: nn.Module, parts: Mapping[str, HostWeight], stack: ExitStack, like: Tensor | None = None
    ) -> None:
        self.leaves: list[Tensor] = []
        self.places: dict[str, tuple[int, tuple[int, ...]]] = {}
        known: dict[Keys, int] = {}
        if parts and like is None:
            like = numbers_of(host)
        for task, part in parts.items():
            what = f"'{part}', the part of task {task!r},"
            owner, within = split_at_value(host, part.keys, what)
            if owner not in known:
                known[owner] = len(self.leaves)
                holder = fetch(host, owner[:-1], what)
                old = holder if type(holder).__module__ == "numpy" else fetch(host, owner, what)
                if any(old is leaf for leaf in self.leaves):
                    raise RuntimeError(f"a weight should be one part's: found that {what} names that of another, too")
                leaf = _leaf(old, like, what)
                self.leaves.append(leaf)
                stack.enter_context(replaced(host, owner, leaf, what))
            place = known[owner], _index(self.leaves[known[owner]], within, what)
            if place in self.places.values():
                raise RuntimeError(f"a weight should be one part's: found that {what} names that of another, too")
            self.places[task] = place

    def named(self) -> list[Tensor]:
        """Return, by leaf, 1 where an element is a task's and 0 where it is another weight of the host's."""
        masks = [torch.zeros_like(leaf) for leaf in self.leaves]
        for leaf, index in self.places.values():
            masks[leaf][index] = 1
        return masks

    def of(self, task: str, values: list[Tensor | None]) -> Tensor | None:
        """Return the element of a task, of tensors in the order of the leaves."""
        leaf, index = self.places[task]
        value = values[leaf]
        return None if value is None else value[index]


def numbers_of(host: nn.Module) -> Tensor:
    """Return a tensor of the dtype and device that a host's numbers have."""
    floating = [parameter for parameter in host.parameters() if parameter.is_floating_point()]
    wide = [parameter for parameter in floating if parameter.dtype == torch.float64]
    return next(iter([*wide, *floating]), torch.empty(()))


def _leaf(old: Any, like: Any, what: str) -> Tensor:
    """Return a leaf with the value of a weight.

    Raises:
        RuntimeError: it is no number and no tensor of them, or is trained.
    """
    if isinstance(old, Tensor):
        if old.requires_grad:
            raise RuntimeError(
                f"{what} should be a weight that is not trained: found one that requires a gradient, which it would no "
                "longer get; name the loss itself, as the host logs it or as a call returns it"
            )
        value = old.detach().clone()
        value = value.to(torch.promote_types(value.dtype, like.dtype))
    elif isinstance(old, Real) and not isinstance(old, bool):
        value = torch.full((), float(old), dtype=like.dtype, device=like.device)  # no copy from the host to a device
    else:
        found = ", whose elements cannot be tensors" if type(old).__module__ == "numpy" else ""
        raise RuntimeError(
            f"{what} should be a number or an element of a tensor, list or dict of them: found a "
            f"{type(old).__name__}{found}; name the loss itself, as the host logs it or as a call returns it"
        )
    return value.requires_grad_()


def _index(leaf: Tensor, within: Keys, what: str) -> tuple[int, ...]:
    """Return the index of one element; one number alone counts the elements of a tensor of any shape.

    Raises:
        RuntimeError: it is not one element.
    """
    numbers = [key for item, key in within if item and isinstance(key, int)]
    fits = len(numbers) == len(within)
    if fits and len(numbers) == 1 and -leaf.numel() <= numbers[0] < leaf.numel():
        return tuple(int(place) for place in torch.unravel_index(torch.tensor(numbers[0] % leaf.numel()), leaf.shape))
    index = tuple(numbers) if numbers or leaf.dim() == 0 else (0,) * leaf.dim() if leaf.numel() == 1 else ()
    sizes = zip(index, leaf.shape, strict=False)
    if not fits or len(index) != leaf.dim() or not all(-size <= at < size for at, size in sizes):
        raise RuntimeError(
            f"{what} should be one weight: found a tensor of shape {list(leaf.shape)} there; name an element, as in "
            "'weight:loss.weights[1]'"
        )
    return index


def candidates(host: nn.Module) -> Iterator[tuple[str, float]]:
    """Yield the paths and values of numbers in a host that may be weights."""
    owners: list[tuple[str, Any]] = [
        (path, part) for path, part in host.named_modules() if not type(part).__module__.startswith("torch.nn")
    ]
    owners += held_by(host)
    hyper = getattr(host, "hparams", None)
    found: dict[str, float] = {}
    for path, owner in owners:
        named: dict[str, Any] = {name: value for name, value in vars(owner).items() if not name.startswith("_")}
        named |= {} if not isinstance(owner, nn.Module) else owner._buffers
        for name, value in named.items():
            found |= dict(_numbers(f"{path}{'.' * bool(path)}{name}", value))
    for name, value in (dict(hyper) if hyper else {}).items():
        found |= dict(_numbers(f"hparams[{name!r}]", value))
    yield from found.items()


def _numbers(path: str, value: Any, depth: int = 0) -> Iterator[tuple[str, float]]:
    if isinstance(value, Tensor):
        if value.is_floating_point() and not value.requires_grad and value.numel() <= _MOST:
            single = value.dim() == 0
            for index, number in enumerate(value.flatten().tolist()):
                yield (path if single else f"{path}[{index}]"), number
    elif isinstance(value, Real) and not isinstance(value, bool):
        yield path, float(value)
    elif depth < 2 and isinstance(value, list | tuple) and len(value) <= _MOST:
        for index, part in enumerate(value):
            yield from _numbers(f"{path}[{index}]", part, depth + 1)
    elif depth < 2 and isinstance(value, dict) and len(value) <= _MOST:
        for key, part in value.items():
            if isinstance(key, str) and "'" not in key:
                yield from _numbers(f"{path}['{key}']", part, depth + 1)


def weight_of(host: nn.Module, path: str, step: Callable[[], list[Any]]) -> float | None:
    """Return `d total / d weight` of a step in which a number is a leaf; None where the total is not linear in it."""
    try:
        part = {"weight": HostWeight(path)}
        with ExitStack() as stack:
            leaves = WeightLeaves(host, part, stack)
            totals = step()
        for total in totals:
            if not isinstance(total, Tensor) or not total.requires_grad or total.numel() != 1:
                continue
            found: Any = torch.autograd.grad(total.sum(), leaves.leaves, create_graph=True, allow_unused=True)
            loss = leaves.of("weight", list(found))
            if loss is None or not loss.requires_grad:
                continue
            again = torch.autograd.grad(loss, leaves.leaves, allow_unused=True)[0]
            if loss.detach() != 0 and (again is None or not bool(again.any())):
                return float(loss.detach())
    except Exception:
        return None
    return None
