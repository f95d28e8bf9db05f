"""Shared features, forked into a branch for each task, whose gradients meet again in backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_uncertainty._tensors import promote, reads_values, world_size

__all__ = ["Fork", "Take", "gramian_of", "take_once"]

Rows = list[Tensor | None]  # a gradient of each task
Take = Callable[[Tensor], Tensor | None]

_SQUARES = (1e-20, 1e30)  # between these float32 loses nothing of a sum of squares


class Fork:
    """One step's branches of the shared features.

    In backward it is given the gradients of all branches at once, has their Gramian taken, and sends one gradient, a
    weighted sum of them, on into the trunk.

    Args:
        tasks: all tasks, in order.
        take: takes the Gramian `[T, T]` of this process and returns what to weigh the gradients by, `[T]`; None where
            their sum is to go on.
        strict: whether every trained task has to come by its branch, in one backward; where it need not, what comes
            otherwise passes unseen.

    Attributes:
        tensors: whether any of the features has a gradient, so that there is something to fork.
        scale: by what gradients of the total arrive multiplied; None before its backward.
        trained: tasks whose losses have a gradient, but for constant terms.
        decided: whether backward weighs the gradients by `weights`, `[T]` or None, and takes no Gramian.
    """

    def __init__(self, tasks: Sequence[str], take: Take = lambda gramian: None, *, strict: bool = True) -> None:
        self.tasks = tuple(tasks)
        self.take = take
        self.strict = strict
        self.tensors = False
        self.scale: Tensor | None = None
        self.trained: frozenset[str] = frozenset()
        self.decided = False
        self.weights: Tensor | None = None
        self.branched: tuple[str, ...] = ()
        self.outputs: tuple[Tensor, ...] = ()  # all branches of all features, by task

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # belongs to a graph: copies of a module have none

    def branch(self, features: Any, tasks: Sequence[str]) -> dict[str, Any]:
        """Return a branch of the features for each of these tasks: a tensor, or tuples and mappings of them."""
        leaves, form = tree_flatten(features)
        forked = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        self.tensors = bool(forked)
        if not forked:
            return dict.fromkeys(tasks, features)
        self.branched = tuple(tasks)
        outputs: tuple[Tensor, ...] = _Branches.apply(self, *(leaves[i] for i in forked))  # type: ignore[no-untyped-call]
        self.outputs = outputs
        branches = {}
        for position, task in enumerate(tasks):
            own = list(leaves)
            for nth, i in enumerate(forked):
                own[i] = outputs[position * len(forked) + nth]
            branches[task] = tree_unflatten(own, form)
        return branches

    def note_scale(self, gradient: Tensor) -> None:
        """Note with what gradient backward begins at the total."""
        self.scale = gradient.detach() * world_size()  # global losses have W times their gradient on each rank

    def join(self, gradients: Sequence[Tensor | None]) -> Rows:
        """Return one gradient for each feature, from those of all branches.

        Raises:
            RuntimeError: a task's loss did not come by its branch, or no total was weighed.
        """
        found = self._by_feature(gradients)
        if not self.decided and self.scale is not None:
            self.weights, self.decided = self.take(self._gramian(found)), True
        return [None if own is None else own.combined(self.weights) for own in found]

    def gramian(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Return the Gramian `[T, T]` of the gradients of all branches, on this process.

        Raises:
            RuntimeError: as `join`.
        """
        return self._gramian(self._by_feature(gradients))

    def _by_feature(self, gradients: Sequence[Tensor | None]) -> list[_Gradients | None]:
        count = len(gradients) // len(self.branched)
        by_task = {t: gradients[i * count : (i + 1) * count] for i, t in enumerate(self.branched)}
        self._check(by_task)
        rows = [[by_task[task][i] if task in by_task else None for task in self.tasks] for i in range(count)]
        return [_Gradients(row) if any(gradient is not None for gradient in row) else None for row in rows]

    def _gramian(self, found: Sequence[_Gradients | None]) -> Tensor:
        assert self.scale is not None
        parts = [own.gramian() for own in found if own is not None]
        if not parts:  # no gradient on this process, but others may have some, and wait
            return self.scale.new_zeros((len(self.tasks), len(self.tasks)), dtype=_wide(self.scale))
        return _sum(parts) / self.scale.to(parts[0]).square()

    def _check(self, by_task: dict[str, Sequence[Tensor | None]]) -> None:
        if not self.strict:
            return
        if self.scale is None:
            raise RuntimeError(
                "features should be split once for each weigh, and the total that weigh returns be what backward "
                "starts from: found a backward through features whose total was not weighed; run all heads on one split"
            )
        around = [t for t, own in by_task.items() if t in self.trained and all(g is None for g in own)]
        around += [t for t in self.tasks if t in self.trained and t not in by_task]
        if around:
            raise RuntimeError(
                f"every task's head should be given its own branch of the shared features: found the loss of "
                f"{', '.join(around)} computed around it; use task_outputs, or give the head "
                "split_features(features)[task]"
            )


class _Branches(torch.autograd.Function):
    """A view of every tensor for every task; a head that changes its view in place is refused by torch."""

    @staticmethod
    def forward(ctx: Any, fork: Fork, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.fork = fork
        return tuple(tensor.view_as(tensor) for _ in fork.branched for tensor in tensors)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        fork = take_once(ctx, "fork") if ctx.fork is None or ctx.fork.strict else ctx.fork
        return (None, *fork.join(gradients))


def take_once(ctx: Any, name: str) -> Any:
    """Return what the context of a Function keeps for its one backward.

    Raises:
        RuntimeError: it had one before.
    """
    kept = getattr(ctx, name)
    if kept is None:
        raise RuntimeError(
            "features that were split should have one backward: found a second through the same graph; weigh the "
            "losses anew"
        )
    setattr(ctx, name, None)
    return kept


class _Gradients:
    """The tasks' gradients of one tensor; they are never copied all at once."""

    def __init__(self, gradients: Rows) -> None:
        self.given = [(i, gradient) for i, gradient in enumerate(gradients) if gradient is not None]
        some = self.given[0][1]
        self.dtype = some.dtype
        nothing = some if len(self.given) == len(gradients) else some.new_zeros(()).expand_as(some)
        rows = [nothing if gradient is None else gradient for gradient in gradients]
        self.rows = rows if some.dim() else [row[None] for row in rows]

    def gramian(self) -> Tensor:
        return _sum([_gramian_of_part(rows) for rows in self._chunks()])

    def combined(self, weights: Tensor | None) -> Tensor:
        (first, gradient), *others = self.given
        total = promote(gradient)
        each = (total.new_ones(len(self.rows)) if weights is None else weights.to(total)).unbind()
        total = total * each[first]
        for i, gradient in others:
            total.addcmul_(promote(gradient), each[i])
        return total.to(self.dtype)

    def _chunks(self) -> Iterator[Tensor]:
        """Return copies `[T, F]` of some of the numbers at a time, of all in the end."""
        length = len(self.rows[0])
        step = max(1, _chunk(self.rows[0]) * length // max(len(self.rows) * self.rows[0].numel(), 1))
        for start in range(0, max(length, 1), step):
            some = [row.narrow(0, start, min(step, length - start)) for row in self.rows]
            yield promote(torch.stack(some)).flatten(1)


def _chunk(like: Tensor) -> int:
    """Return how many numbers are worked on at a time: what caches of a CPU hold; on a GPU many, for few kernels."""
    return 1 << (20 if like.device.type == "cpu" else 24)


def _sum(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def gramian_of(rows: Tensor) -> Tensor:
    """Return the Gramian `[T, T]` of rows `[T, F]`, in float64 where the device has it."""
    parts = torch.split(rows, max(1, _chunk(rows) // len(rows)), dim=1)  # type: ignore[no-untyped-call]
    return _sum([_gramian_of_part(part) for part in parts])


def _gramian_of_part(rows: Tensor) -> Tensor:
    wide = _wide(rows)
    if not rows.numel():
        return rows.new_zeros((len(rows), len(rows)), dtype=wide)
    if reads_values(rows):
        gramian = (rows @ rows.T).to(wide)
        shortest, longest = gramian.diagonal().aminmax()
        if _SQUARES[0] < shortest.item() and longest.item() < _SQUARES[1]:
            return gramian
    largest = torch.maximum(rows.amax(1), -rows.amin(1))
    unit = largest.clamp(min=torch.finfo(rows.dtype).tiny)
    rows = rows / unit[:, None]  # squares of rows as they are may leave float32's range
    unit = unit.to(wide)
    return (rows @ rows.T).to(wide) * unit[:, None] * unit


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64
