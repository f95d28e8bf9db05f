"""Numbers of the global batch: every rank sees the same values, every gradient is that of one process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ["SideGroup", "exchange_device", "mean_losses", "rank", "summed_over_ranks", "world_size"]


def world_size() -> int:
    """Return the number of processes that share a batch; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return which of the processes that share a batch this is; 0 without a process group."""
    return distributed.get_rank() if world_size() > 1 else 0


def summed_over_ranks(numbers: Tensor) -> Tensor:
    """Return the sum over all processes of numbers, on any device; all come here alike.

    Example:
        >>> summed_over_ranks(torch.tensor([1.0, 2.0]))  # in one process
        tensor([1., 2.])
    """
    if world_size() == 1:
        return numbers
    sent = numbers.to(exchange_device(numbers.device), copy=True)
    distributed.all_reduce(sent)
    return sent.to(numbers.device)


def exchange_device(device: torch.device) -> torch.device:
    """Return where processes exchange what is on a device: NCCL takes nothing from a CPU, where a fit leaves a module.

    Example:
        >>> exchange_device(torch.device("cpu"))  # in one process
        device(type='cpu')
    """
    on_gpus = world_size() > 1 and distributed.get_backend() == "nccl"
    return torch.device("cuda") if on_gpus and device.type == "cpu" else device


def mean_losses(
    sums: Tensor, counts: Tensor | None, labels: Tensor | None = None, *, over_ranks: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""Divide sums by counts over the global batch, in one all-reduce of `[3T]` numbers.

    With `W` ranks, local sums `S_r` and the counts' sum `N`, a loss has the value of the global mean `S / N` and the
    gradient of `W S_r / N`: as DDP and FSDP average gradients over ranks, the result is the gradient of `S / N`. The
    mean of the ranks' own means is neither where counts differ.

    Args:
        sums: `[T]`, with gradients.
        counts: `[T]`; where 0, the sum is ignored, be it NaN; a negative, NaN or infinite one makes the mean NaN. None
            counts 1 for each.
        labels: how many labels each sum is of, `[T]`, infinite where nobody knows; None is nowhere.
        over_ranks: whether to reduce over the process group (training); otherwise there is no collective.

    Returns:
        Mean losses `[T]`, 0 where nothing is observed, presence `[T]`: has the task a label anywhere, and labels of
        all ranks `[T]`; None where they are known nowhere.

    Example:
        >>> mean_losses(torch.tensor([6.0, float("nan")]), torch.tensor([3.0, 0.0]), over_ranks=True)
        (tensor([2., 0.]), tensor([ True, False]), None)
    """
    ranks = world_size() if over_ranks else 1
    if counts is None:
        if ranks == 1:
            return sums, torch.ones_like(sums, dtype=torch.bool), labels
        counts = torch.ones_like(sums)
    sums = torch.where(counts == 0, 0.0, sums + 0 * counts.detach().sqrt())  # NaN for a count that makes no sense
    if ranks == 1:
        present = counts > 0
        return sums / torch.where(present, counts, 1.0), present, labels
    labels = torch.full_like(counts, torch.inf) if labels is None else labels  # other ranks may know some
    global_numbers = torch.cat([sums.detach(), counts, labels])
    distributed.all_reduce(global_numbers)
    global_sums, global_counts, global_labels = global_numbers.chunk(3)
    present = global_counts > 0
    global_counts = torch.where(present, global_counts, 1.0)
    local = sums * (ranks / global_counts)
    return global_sums / global_counts + (local - local.detach()), present, global_labels


class SideGroup:
    """All processes once more, for collectives in the middle of a backward.

    DDP reduces gradients meanwhile, in the default group, where ranks need not come to a collective of ours in the same
    order. Copies and pickles of it have no group yet.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._beside: Any = None  # the default group it was made for

    def __reduce__(self) -> tuple[Any, ...]:
        return SideGroup, ()

    def prepare(self) -> None:
        """Make the group where there is none for the present default group; all ranks come here alike."""
        if world_size() == 1:
            return
        default = distributed.group.WORLD
        if self._beside is not default:
            self._group, self._beside = distributed.new_group(), default

    def all_reduced(self, numbers: Tensor) -> Tensor:
        """Return the sum over ranks, as it is on one process; to be prepared before."""
        if world_size() > 1:
            distributed.all_reduce(numbers, group=self._group)
        return numbers
