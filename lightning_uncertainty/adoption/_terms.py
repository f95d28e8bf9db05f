"""From a host's total to the losses that it is the weighted sum of, and whether it is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from lightning_uncertainty.adoption._watch import Sight, Watch

__all__ = ["Expected", "Terms", "losses_alone", "terms_of"]

Expected = Callable[[float, dict[str, float], dict[str, float], float], bool]
"""Takes total, losses, weights and rest; returns whether it is the tasks' total, and raises where it is none."""

_ROUNDINGS = 64
"""Of so many eps of the widest rounding may a total differ from its terms; of 4 where it is a half type."""


@dataclass
class Terms:
    """The terms of a total.

    Attributes:
        losses: by task, 0-dimensional, without the host's weights; of those whose part the total is made of.
        weights: the host's weights, `d total / d loss`.
        rest: what no part explains; None where nobody asked.
    """

    losses: dict[str, Tensor]
    weights: dict[str, Tensor]
    rest: Tensor | None


def losses_alone(watch: Watch) -> dict[str, Tensor] | None:
    """Return the losses as they were seen, of a total that was looked at before; None where it takes a derivative."""
    if watch.weights.leaves or any(len(seen) > 1 for seen in watch.sights.values()):
        return None
    return {task: seen[0].value for task, seen in watch.sights.items()}


def terms_of(
    total: Tensor, watch: Watch, *, remainder: bool, check: bool, kept: Collection[str] = (), expected: Expected
) -> Terms | None:
    """Return the terms of a total; None where no part is in it, or it is not the tasks'.

    Args:
        total: what the host would minimise, 0-dimensional.
        watch: what its step showed.
        remainder: whether to say what no part explains.
        check: whether to look if the total is linear in its parts, which reads from the device.
        kept: tasks whose host weights stay; those of others should be constants, as they are taken out.
        expected: looks at them where they are read.

    Raises:
        RuntimeError: the total has no graph, is no scalar, or not linear in its parts.
    """
    if not isinstance(total, Tensor) or total.numel() != 1:
        what = f"shape {list(total.shape)}" if isinstance(total, Tensor) else f"a {type(total).__name__}"
        raise RuntimeError(f"the loss of a host's step should be one number: found {what}; adopt needs its mean or sum")
    if not total.requires_grad:
        return None
    total = total.as_subclass(Tensor).reshape(())
    seen = [(task, sight) for task, sights in watch.sights.items() for sight in sights]
    inputs: list[Any] = [sight.edge for _, sight in seen] + watch.weights.leaves
    if not inputs:
        return None
    gradients: Any = torch.autograd.grad(total, inputs, create_graph=True, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        return None
    if check:
        _check_apart(watch, [each for each, gradient in zip(seen, gradients, strict=False) if gradient is not None])
        _check_linear(gradients, inputs, [None] * len(seen) + watch.weights.named())
        taken_out = [None if task in kept else each for (task, _), each in zip(seen, gradients, strict=False)]
        _check_constant(total, seen, taken_out, watch.weights.leaves)
    losses, weights = {}, {}
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (task, sight), gradient in zip(seen, gradients, strict=False):
        if gradient is not None:
            pairs.setdefault(task, []).append((gradient.reshape(()), sight.value))
    for task, found in pairs.items():
        weights[task], losses[task] = found[0] if len(found) == 1 else _mean_of(found)
    by_leaf: list[Any] = list(gradients[len(seen) :])
    leaves: list[Any] = list(watch.weights.leaves)
    for task in watch.weights.places:
        loss, weight = watch.weights.of(task, by_leaf), watch.weights.of(task, leaves)
        if loss is not None and weight is not None:
            losses[task], weights[task] = loss, weight.detach()
    terms = Terms(losses, weights, None)
    if check or remainder:
        shares = [weights[task] * loss for task, loss in losses.items()]
        terms.rest = total - torch.stack(shares).sum() if shares else total
    return None if check and not _is_expected(total, terms, expected) else terms


def _mean_of(found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the weight of what was seen several times, and its mean by the weights."""
    weight = torch.stack([weight for weight, _ in found]).sum()
    return weight, torch.stack([weight * value for weight, value in found]).sum() / weight


def _check_apart(watch: Watch, seen: list[tuple[str, Sight]]) -> None:
    """Look whether a part that was seen is made of another, or of what a weight multiplies.

    Raises:
        RuntimeError: it is.
    """
    inputs = [sight.edge for _, sight in seen] + watch.weights.leaves
    if not seen or len(inputs) < 2:
        return
    values = [sight.value for _, sight in seen]
    by = [_unlike(value, place) for place, value in enumerate(values, 1)]
    found = _derivatives(values, inputs, by)
    of_others = [each.reshape(()) - own for each, own in zip(found, by, strict=False)]
    of_others += [
        each for task in watch.weights.places if (each := watch.weights.of(task, found[len(seen) :])) is not None
    ]
    if not torch.stack([each.double() for each in of_others]).any():
        return
    for at, (task, sight) in enumerate(seen):
        within = _derivatives([sight.value], inputs, [torch.ones_like(sight.value)])
        inner = [(seen[to][0], each) for to, each in enumerate(within[: len(seen)]) if to != at]
        inner += [(name, watch.weights.of(name, within[len(seen) :])) for name in watch.weights.places]
        held = [name for name, each in inner if each is not None and each.any()]
        if held:
            raise RuntimeError(
                f"a part should not hold another, whose loss would count twice: found that {watch.named(task)}, holds "
                f"{watch.named(held[0])}; name what is added to that (`describe` of lightning_uncertainty.adoption "
                f"lists the ways), or say rest={task!r} in place of its part"
            )


def _derivatives(values: list[Tensor], inputs: list[Any], by: list[Tensor]) -> list[Any]:
    return list(torch.autograd.grad(values, inputs, by, allow_unused=True, retain_graph=True))


def _check_linear(found: tuple[Tensor | None, ...], inputs: list[Any], named: list[Tensor | None]) -> None:
    """Look whether a second derivative of the total by its parts is not zero.

    Args:
        found: the first ones.
        inputs: by what they are.
        named: which elements of an input are parts; None for all.

    Raises:
        RuntimeError: so it is.
    """
    firsts = [
        (gradient, own)
        for gradient, own in zip(found, named, strict=True)
        if gradient is not None and gradient.requires_grad
    ]
    if not firsts:
        return
    mixed = [_of(_unlike(gradient, place), own) for place, (gradient, own) in enumerate(firsts, 1)]
    again = torch.autograd.grad([first for first, _ in firsts], inputs, mixed, allow_unused=True, retain_graph=True)
    curved = [_of(gradient, own) for gradient, own in zip(again, named, strict=True) if gradient is not None]
    if curved and bool(torch.stack([gradient.ne(0).any() for gradient in curved]).any()):
        raise RuntimeError(
            "a host's loss should be a weighted sum of its parts: found a second derivative by them that is not zero, "
            "as of a product, a root or a norm of losses; name parts that are added up, or write a step that calls "
            "weigh"
        )


def _of(value: Tensor, named: Tensor | None) -> Tensor:
    return value if named is None else value * named


def _check_constant(
    total: Tensor, seen: list[tuple[str, Sight]], weights: list[Tensor | None], leaves: list[Tensor]
) -> None:
    """Look whether the host's weights are trained, those apart that are `leaves` for this step.

    Raises:
        RuntimeError: they are.
    """
    parts = {sight.edge.node for _, sight in seen if sight.edge is not None}
    parts |= {get_gradient_edge(leaf).node for leaf in leaves}
    trained = {}
    for (task, _), weight in zip(seen, weights, strict=False):
        own = _leaves_of(weight, parts)
        if any(leaf.numel() for leaf in own) or (own and any(leaf.numel() for leaf in _leaves_of(total, parts))):
            trained[task] = True  # what is compiled says of its gradients an empty leaf alone
    if trained:
        raise RuntimeError(
            f"a host's weights should be constants: found that the host trains those of {', '.join(trained)}, which "
            "would get no gradient any more; switch that off in the host, or say keep_host_weights=True"
        )


def _leaves_of(value: Tensor | None, parts: set[Any]) -> list[Tensor]:
    """Return the leaves of a graph, but for those of its parts."""
    seen, leaves = set(parts), []
    nodes: list[Any] = [] if value is None or value.grad_fn is None else [value.grad_fn]
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            leaves += [node.variable] if hasattr(node, "variable") else []
            nodes += [following for following, _ in node.next_functions if following is not None]
    return leaves


def _unlike(gradient: Tensor, place: int) -> Tensor:
    """Return numbers from 0.5 to 1.5 that cancel nothing, without the generator that a host draws from."""
    steps = torch.arange(gradient.numel(), dtype=torch.float64, device="cpu") + place * math.e
    return (0.5 + (steps * math.sqrt(5)).frac()).reshape(gradient.shape).to(gradient)


def _is_expected(total: Tensor, terms: Terms, expected: Expected) -> bool:
    """Hand over what the terms are in numbers, by one read; return what is said of them.

    Raises:
        RuntimeError: as `expected`.
    """
    tasks = list(terms.losses)
    assert terms.rest is not None
    values = [total, terms.rest, *terms.losses.values(), *terms.weights.values()]
    numbers = torch.stack([value.detach().reshape(()).double() for value in values]).tolist()
    losses = dict(zip(tasks, numbers[2:], strict=False))
    weights = dict(zip(terms.weights, numbers[2 + len(tasks) :], strict=True))
    size = abs(numbers[0]) + sum(abs(losses[task] * weights[task]) for task in tasks)
    eps = max(torch.finfo(value.dtype).eps for value in values)
    small = math.isfinite(numbers[1]) and abs(numbers[1]) <= (_ROUNDINGS if eps < 1e-4 else 4) * eps * size + 1e-30
    return expected(numbers[0], losses, weights, 0.0 if small else numbers[1])
