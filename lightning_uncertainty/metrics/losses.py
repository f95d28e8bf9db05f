"""Mean losses over an epoch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["BalancedLoss", "TaskLoss"]


class TaskLoss(Metric):
    """Mean loss of a task over everything observed in an epoch, on all ranks: a sum over sums by a sum of counts.

    Its value is None where nothing was observed, and Lightning then logs nothing.

    Example:
        >>> metric = TaskLoss()
        >>> metric.update(torch.tensor(6.0), torch.tensor(2.0))
        >>> metric.update(torch.tensor(0.0), torch.tensor(1.0))
        >>> metric.compute()
        tensor(2.)
    """

    full_state_update = False
    higher_is_better = False
    sum: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sum", torch.zeros((), dtype=torch.float32, device="cpu"), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float32, device="cpu"), dist_reduce_fx="sum")

    def update(self, sum: Tensor, count: Tensor) -> None:
        self.sum += torch.where(count > 0, sum.detach(), 0.0)
        self.count += count

    def compute(self) -> Tensor | None:
        return self.sum / self.count if self.count > 0 else None


class BalancedLoss(Metric):
    r"""Kendall's objective with every log-variance at its optimum: :math:`\sum_i b_i (r_i/a_i) \log L_i` + constant.

    `L` is a task's mean loss over the epoch. A change of units shifts the value and never its order, and it cannot fall
    by a change of σ alone: this, not the weighted total, is what to monitor for all tasks together. A task whose
    likelihood is normalised has no such optimum and adds `b L` itself. Tasks without a
    label in the epoch are left out with one warning; its value is None where no task has any.

    Args:
        powers: `b r / a` by task name; of a normalised one `b`.
        normalised: names of tasks whose likelihood is normalised, whose losses may be negative.
        constant: names of terms that are no tasks, and left out.

    Example:
        >>> metric = BalancedLoss({"depth": 0.5, "semantics": 0.5})
        >>> metric.update(torch.tensor([4.0, 1.0]), torch.tensor([1.0, 1.0]))
        >>> round(metric.compute().item(), 4)  # log(4) / 2
        0.6931
    """

    full_state_update = False
    higher_is_better = False
    sums: Tensor
    counts: Tensor

    def __init__(
        self, powers: Mapping[str, float], normalised: Iterable[str] = (), constant: Iterable[str] = ()
    ) -> None:
        super().__init__()
        self.powers = dict(powers)
        self.normalised, self.constant = frozenset(normalised), frozenset(constant)
        self.add_state("sums", torch.zeros(len(powers), dtype=torch.float32, device="cpu"), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(powers), dtype=torch.float32, device="cpu"), dist_reduce_fx="sum")
        self._absent = ""
        self._warned = False

    def update(self, sums: Tensor, counts: Tensor) -> None:
        self.sums += torch.where(counts > 0, sums.detach(), 0.0)
        self.counts += counts

    def compute(self) -> Tensor | None:
        seen = self.counts > 0
        if self.constant:
            seen &= self.counts.new_tensor([name not in self.constant for name in self.powers]) > 0
        there = dict(zip(self.powers, seen.tolist(), strict=True))
        self._absent = ", ".join(name for name in self.powers if not there[name] and name not in self.constant)
        if not seen.any():
            return None
        mean = self.sums / torch.where(seen, self.counts, 1.0)
        terms = mean.clamp(min=torch.finfo(torch.float32).tiny).log()
        if self.normalised:
            as_it_is = [name in self.normalised for name in self.powers]
            terms = torch.where(torch.tensor(as_it_is, device=mean.device), mean, terms)
        return (self.sums.new_tensor(list(self.powers.values())) * torch.where(seen, terms, 0.0)).sum()

    def reset(self) -> None:
        if self._absent and not self._warned:  # only now is the epoch over: there may be a loader for each task
            self._warned = True
            warnings.warn(
                f"no label of {self._absent} in this evaluation: left out of balanced_loss, whose values then compare "
                "only among epochs with the same tasks",
                stacklevel=2,
            )
        self._absent = ""
        super().reset()
