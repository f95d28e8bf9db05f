"""Backward passes that look at the tasks' gradients before they go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_uncertainty._tensors import SideGroup, promote, world_size
from lightning_uncertainty.balancing._fork import Fork, Take, gramian_of, take_once
from lightning_uncertainty.balancing.step import Step

__all__ = ["Scratch", "by_parameters", "reweighted"]


def reweighted(fork: Fork, step: Step, take: Take) -> Tensor:
    """Return the total, whose backward first runs through the heads alone and weighs every loss by what it finds.

    Trunk and heads then get the gradients of the losses so weighed; a weighting's own parameters those of the total.
    """
    total: Tensor = _Reweighted.apply(fork, take, step.weights, step.total, step.losses)  # type: ignore[no-untyped-call]
    return total


class _Reweighted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fork: Fork, take: Take, weights: Tensor, total: Tensor, losses: Tensor) -> Tensor:
        ctx.work = fork, take, weights, total
        return total.view_as(total)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        fork, take, weights, total = take_once(ctx, "work")
        fork.note_scale(gradient)
        branches = torch.autograd.grad(total, fork.outputs, gradient, retain_graph=True, allow_unused=True)
        found = take(fork.gramian(branches))
        fork.decided = True  # their sum goes on
        extra = None if found is None else gradient * (found - 1).to(weights) * weights
        return None, None, None, gradient, extra


class Scratch:
    """Memory that one step leaves to the next: to take fresh pages costs as much as to fill them. Copies have none."""

    def __init__(self) -> None:
        self._kept: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Scratch, ()

    def like(self, tensor: Tensor, *shape: int) -> Tensor:
        """Return numbers that mean nothing, of the type and on the device of a tensor."""
        kept = self._kept
        if kept is None or (kept.shape, kept.dtype, kept.device) != (shape, tensor.dtype, tensor.device):
            self._kept = None  # not beside the new one
            self._kept = kept = tensor.new_empty(shape)
        return kept


def by_parameters(
    step: Step, tasks: Sequence[str], heads: str, group: SideGroup, take: Take, known: Any, scratch: Scratch
) -> Tensor:
    """Return the total, whose backward weighs the gradients of the shared parameters, exactly.

    It runs through the model once for each task, and no further: what it finds is handed to the parameters as by an
    ordinary backward, so that hooks on them run, DDP's too.

    Args:
        step: a step's losses and parameters.
        tasks: all tasks, in order.
        heads: "weighted" or "unweighted", by α.
        group: sums over ranks.
        take: takes the Gramian `[T, T]` and returns α.
        known: α `[T]` where it is not to be looked for: one ordinary backward, two where heads are unweighted.
        scratch: where the tasks' gradients are held.

    Raises:
        RuntimeError: shared parameters are sharded, so no process has the gradient of any.
    """
    sharded = [parameter for parameter in step.shared if type(parameter) is not nn.Parameter]
    if sharded:
        raise RuntimeError(
            f"on='parameters' should have whole parameters: found {len(sharded)} of type {type(sharded[0]).__name__}; "
            "use on='features' under FSDP2"
        )
    work = _ByParameters(step, tasks, heads == "weighted", group, take, known, scratch)
    total: Tensor = _Handed.apply(work, *step.shared, *step.others, *step.own)  # type: ignore[no-untyped-call]
    return total


class _Handed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _ByParameters, *parameters: Tensor) -> Tensor:
        ctx.work = work
        return work.step.total.detach().clone()  # of no other graph, which would be run through once more

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return None, *take_once(ctx, "work").gradients(gradient)


@dataclass(frozen=True, eq=False)
class _ByParameters:
    step: Step
    tasks: Sequence[str]
    weighted: bool  # the heads, too
    group: SideGroup
    take: Take
    known: Tensor | None
    scratch: Scratch

    def gradients(self, gradient: Tensor) -> list[Tensor | None]:
        """Return those of all parameters, from that of the total."""
        parts, own = list(self.step.parts.values()), list(self.step.own)
        found = _gradients(self.step.total, [*parts, *own], gradient)
        of_parts = [torch.zeros_like(x) if g is None else g for x, g in zip(parts, found, strict=False)]
        each = self._each_task(parts, of_parts, gradient) if self.known is None else self._at_once(parts, of_parts)
        result = [*each, *found[len(parts) :]]
        if world_size() == 1:
            return result
        everything = [*self.step.shared, *self.step.others, *own]  # DDP waits for all of them
        return [torch.zeros_like(p) if g is None else g for p, g in zip(everything, result, strict=True)]

    def _each_task(self, parts: list[Tensor], of_parts: list[Tensor], gradient: Tensor) -> list[Tensor | None]:
        """Run backward for one task after the other."""
        rows = self.scratch.like(promote(gradient), len(self.tasks), sum(p.numel() for p in self.step.shared))
        for index, task in enumerate(self.tasks):
            if task not in self.step.parts:
                rows[index] = 0.0
        of_others = []  # a task's index, and its gradients of the other parameters
        for i, (task, part, of_part) in enumerate(zip(self.step.parts, parts, of_parts, strict=True)):
            found = _gradients(part, [*self.step.shared, *self.step.others], of_part, retain_graph=i + 1 < len(parts))
            index = self.tasks.index(task)
            self._flatten(found[: len(self.step.shared)], rows[index])
            of_others.append((index, found[len(self.step.shared) :]))
        if world_size() > 1:
            self.group.all_reduced(rows).div_(world_size())  # averaged first: Gramians of ranks do not add up here
        gramian = gramian_of(rows)
        weights = self.take(gramian / gradient.to(gramian).square())
        weights = torch.ones_like(rows[:, 0]) if weights is None else weights.to(rows)
        shared = self._unflatten(weights @ rows)
        return [*shared, *(self._summed(place, of_others, weights) for place in range(len(self.step.others)))]

    def _flatten(self, found: Sequence[Tensor | None], row: Tensor) -> None:
        own = [torch.zeros_like(p) if g is None else g for p, g in zip(self.step.shared, found, strict=True)]
        if own:
            torch.cat([gradient.reshape(-1).to(row) for gradient in own], out=row)

    def _unflatten(self, row: Tensor) -> list[Tensor]:
        own, offset = [], 0
        for parameter in self.step.shared:
            part = row[offset : offset + parameter.numel()]
            own.append(part.reshape(parameter.shape).to(parameter.dtype))
            offset += parameter.numel()
        return own

    def _summed(
        self, place: int, of_others: Sequence[tuple[int, Sequence[Tensor | None]]], weights: Tensor
    ) -> Tensor | None:
        """Return the gradient of another parameter, which one task has or several do."""
        total: Tensor | None = None
        for index, found in of_others:
            own = found[place]
            if own is not None:
                own = own * weights[index].to(own) if self.weighted else own
                total = own if total is None else total + own
        return total

    def _at_once(self, parts: list[Tensor], of_parts: list[Tensor]) -> list[Tensor | None]:
        """Run one backward by known weights, and one for heads that are to have none."""
        assert self.known is not None
        by_task = dict(zip(self.tasks, self.known, strict=True))
        weighted = [g * by_task[task].to(g) for task, g in zip(self.step.parts, of_parts, strict=True)]
        if self.weighted:
            return _gradients(parts, [*self.step.shared, *self.step.others], weighted)
        others = _gradients(parts, self.step.others, of_parts, retain_graph=True)
        return [*_gradients(parts, self.step.shared, weighted), *others]


def _gradients(
    outputs: Tensor | list[Tensor], inputs: Sequence[Tensor], by: Tensor | list[Tensor], retain_graph: bool = True
) -> list[Tensor | None]:
    """Return gradients of the inputs, None where there is none."""
    roots = outputs if isinstance(outputs, list) else [outputs]
    if not inputs or not any(root.requires_grad for root in roots):
        return [None] * len(inputs)
    return list(torch.autograd.grad(outputs, list(inputs), by, retain_graph=retain_graph, allow_unused=True))
