"""The losses of a step, given by task name, as vectors in the order of registration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from lightning_uncertainty._tensors import promote, reads_values
from lightning_uncertainty.tasks.task import check_known

__all__ = ["TaskLossValue", "check_graphs", "graph_of", "stack_losses"]

TaskLossValue = Tensor | tuple[Tensor, Tensor | float] | None


def stack_losses(
    losses: Mapping[str, TaskLossValue], tasks: Mapping[str, object], like: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Stack sums, counts and numbers of labels `[T]` in the order of `tasks`; sums alone where all losses are means.

    A pair's count is its number of labels, unless it has `labels` of its own; that of a mean is not known, so infinite.
    Where a task has no loss, a zero stands on the device of `like`.

    Raises:
        ValueError: a task is unknown or missing, or a loss is neither a scalar nor a pair of them.

    Example:
        >>> tasks = {"depth": "gaussian", "kind": "categorical"}
        >>> stack_losses({"kind": (torch.tensor(6.0), 3), "depth": None}, tasks, like=torch.empty(2))
        (tensor([0., 6.]), tensor([0., 3.]), tensor([0., 3.]))
    """
    if not isinstance(losses, Mapping):
        raise ValueError(
            f"losses should be given by task name, as in {{{next(iter(tasks))!r}: loss}}: found {_shape(losses)}"
        )
    in_order = [*losses] == [*tasks]
    if not in_order and losses.keys() != tasks.keys():
        check_known(losses, tasks)
        missing = ", ".join(name for name in tasks if name not in losses)
        raise ValueError(
            f"every task should have an entry: found none for {missing}; give None where it has no labels in this batch"
        )
    values = [*losses.values()] if in_order else [losses[name] for name in tasks]
    if set(map(type, values)) == {Tensor} and not any(map(Tensor.dim, values)):  # type: ignore[arg-type]
        return promote(_real(torch.stack(values), values, tasks)), None, None  # type: ignore[arg-type]
    nothing = torch.zeros((), dtype=torch.float32, device=like.device)  # not the default type, which may be a half one
    pairs = [_pair(name, value, nothing) for name, value in zip(tasks, values, strict=True)]
    named = list(zip(tasks, pairs, strict=True))
    sums = promote(_real(torch.stack([value for value, _ in pairs]), [value for value, _ in pairs], tasks))
    counts = torch.stack([_real(count, [count], [name]).to(sums) for name, (_, count) in named])
    if sums.requires_grad and reads_values(sums):
        _refuse_poison(pairs, sums, counts, tasks)
    labels = [_labels(value, count) for value, count in zip(values, counts.unbind(), strict=True)]
    return sums, counts, torch.stack(labels)


def _real(found: Tensor, values: Sequence[Any], tasks: Iterable[str]) -> Tensor:
    """Return a tensor of real numbers as it is.

    Raises:
        ValueError: it is complex.
    """
    if found.is_complex():
        names = [name for name, value in zip(tasks, values, strict=True) if value.is_complex()]
        raise ValueError(
            f"a loss should be a real number: found a complex one for {', '.join(names)}; take its absolute value"
        )
    return found


def _refuse_poison(pairs: list[tuple[Tensor, Tensor]], sums: Tensor, counts: Tensor, tasks: Iterable[str]) -> None:
    """Raise where a sum over nothing is not finite and makes gradients NaN, though it counts nothing.

    Raises:
        ValueError: so it is.
    """
    for name, (value, _), bad in zip(tasks, pairs, ((counts == 0) & ~sums.isfinite()).tolist(), strict=True):
        if bad and value.requires_grad and _poisons(value):
            raise ValueError(
                f"the sum of a loss without labels should be 0, as masked_sum has it: found {value.item()} with count "
                f"0 for task {name!r}, whose gradient is NaN; give None where there are no labels"
            )


def _poisons(value: Tensor) -> bool:
    """Whether a gradient of zero becomes one that is not finite on its way to the parameters.

    It looks no further than a Python function, as the fork of `GradientBalancing`, which may not run twice.
    """
    leaves, seen, nodes = [], set(), [value.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen or isinstance(node, BackwardCFunction):
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaves.append(leaf)
        nodes += [after for after, _ in node.next_functions]
    if not leaves:
        return False
    gradients = torch.autograd.grad(value, leaves, torch.zeros_like(value), retain_graph=True, allow_unused=True)
    return not all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


def graph_of(value: TaskLossValue) -> Tensor | None:
    """Return the tensor of a loss that has a gradient, None where it has none."""
    total = value[0] if isinstance(value, tuple) else value
    return total if total is not None and total.requires_grad else None


def check_graphs(losses: Mapping[str, TaskLossValue], network: Iterable[Tensor]) -> None:
    """Look whether anything of a network would learn from losses.

    Args:
        losses: of a step that is to be gone back from.
        network: its parameters.

    Raises:
        RuntimeError: no loss has a gradient, though parameters have one and losses are not 0.
    """
    given = {name: value for name, value in losses.items() if value is not None}
    if not torch.is_grad_enabled() or any(graph_of(value) is not None for value in given.values()):
        return
    values = [value[0] if isinstance(value, tuple) else value for value in given.values()]
    if any(parameter.requires_grad for parameter in network) and any(bool(value.ne(0).any()) for value in values):
        raise RuntimeError(
            "losses should depend on what is trained, or σ alone would learn: found none with a graph of "
            f"{', '.join(given)}, as after detach() or item(), or under no_grad; give weigh the losses themselves"
        )


def _pair(name: str, value: TaskLossValue, nothing: Tensor) -> tuple[Tensor, Tensor]:
    """Return a loss as `(sum, count)`: a mean counts 1, None counts 0."""
    total, count = value if isinstance(value, tuple) and len(value) == 2 else (value, 1.0)
    if value is None:
        return nothing, nothing
    if isinstance(count, float | int):
        count = torch.full_like(nothing, count)
    if not all(isinstance(item, Tensor) and not item.shape for item in (total, count)):
        raise ValueError(
            f"a loss should be a 0-dimensional tensor or a pair (sum, count): found {_shape(value)} for task {name!r}; "
            "take its mean, or use masked_sum"
        )
    return total, count  # type: ignore[return-value]


def _labels(value: TaskLossValue, count: Tensor) -> Tensor:
    """Return how many labels a loss is of: 0 for None, infinitely many for a mean."""
    if isinstance(value, Tensor):
        return torch.full_like(count, math.inf)
    labels: Tensor | None = getattr(value, "labels", None)
    return count if labels is None else labels.to(count)


def _shape(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_shape(item) for item in value)})"
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
