"""The losses of all tasks of a stage, summed as vectors."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_uncertainty.metrics.losses import BalancedLoss

__all__ = ["LossPart", "StageLosses"]


class StageLosses(BalancedLoss):
    """The balanced loss, which sums the tasks' own losses on its way: in a batch one update for all tasks.

    Each `LossPart` tells one of these, and is reset alone: it may be read and reset in any order, as others.

    Args:
        powers: as of `BalancedLoss`, as are the others.

    Example:
        >>> losses = StageLosses({"depth": 0.5, "semantics": 0.5})
        >>> depth = LossPart(losses, "depth")
        >>> losses.update(torch.tensor([6.0, 1.0]), torch.tensor([2.0, 1.0]))
        >>> losses.update(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]))
        >>> depth.compute()
        tensor(2.)
    """

    full_state_update = True  # so that `forward` does not add up what a reset keeps
    of_tasks: Tensor

    def __init__(
        self, powers: Mapping[str, float], normalised: Iterable[str] = (), constant: Iterable[str] = ()
    ) -> None:
        super().__init__(powers, normalised, constant)
        self.updates = 0  # ever
        self.means: dict[str, Tensor | None] = {}  # of the latest compute
        zeros = torch.zeros(2, len(powers), dtype=torch.float32, device="cpu")
        self.add_state("of_tasks", zeros, dist_reduce_fx="sum")

    def update(self, sums: Tensor, counts: Tensor) -> None:
        super().update(sums, counts)
        batch = torch.stack([torch.where(counts > 0, sums.detach(), 0.0), counts.to(sums.dtype)])
        self.of_tasks = (self.of_tasks + batch).to(self.of_tasks.dtype)
        self.updates += 1

    def compute(self) -> Tensor | None:
        sums, counts = self.of_tasks
        means = zip(self.powers, (sums / counts).unbind(), counts.tolist(), strict=True)
        self.means = {name: mean if count > 0 else None for name, mean, count in means}
        return super().compute()

    def reset(self) -> None:
        """Begin the balanced loss anew; parts are reset one by one."""
        kept = self.of_tasks
        super().reset()
        self.of_tasks = kept

    def set_part(self, name: str, numbers: Tensor) -> None:
        """Begin the loss of one task anew, with a sum and a count `[2]`."""
        own = torch.tensor([task == name for task in self.powers], device=self.of_tasks.device)
        self.of_tasks = torch.where(own, numbers.to(self.of_tasks)[:, None], self.of_tasks)
        self._computed = None

    def part(self, name: str) -> Tensor:
        """Return the sum and the count of one task `[2]`."""
        return self.of_tasks[:, list(self.powers).index(name)]


class LossPart(Metric):
    """The mean loss of one task, as of `TaskLoss`, out of the sums of all.

    Args:
        whole: which is updated in its place.
        name: of the task.
    """

    full_state_update = False
    higher_is_better = False

    def __init__(self, whole: StageLosses, name: str) -> None:
        super().__init__()
        self._whole, self.name = (whole,), name  # within a tuple: it is no child of this
        self._since = whole.updates

    @property
    def update_called(self) -> bool:
        """Whether it, or the whole, was updated since the latest reset."""
        return super().update_called or self._whole[0].updates > self._since

    def update(self, sum: Tensor, count: Tensor) -> None:
        """Add to this task alone; batches of all tasks are given to the whole."""
        whole = self._whole[0]
        batch = torch.stack([torch.where(count > 0, sum.detach(), 0.0), count.to(sum.dtype)])
        whole.set_part(self.name, whole.part(self.name) + batch)

    def compute(self) -> Tensor | None:
        whole = self._whole[0]
        with warnings.catch_warnings():
            if self.update_called:  # though the balanced loss may have been reset
                warnings.filterwarnings("ignore", message="The ``compute`` method", category=UserWarning)
            whole.compute()
        return whole.means[self.name]

    def reset(self) -> None:
        super().reset()
        self._whole[0].set_part(self.name, torch.zeros(2))
        self._since = self._whole[0].updates

    def _wrap_compute(self, compute: Any) -> Any:
        return compute  # the whole is what is reduced over processes and kept
