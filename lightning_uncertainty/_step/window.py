"""What the training steps since the last row left behind, on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_uncertainty._tensors import reads_values
from lightning_uncertainty.weightings import Weighted, Weighting

__all__ = ["StepWindow", "all_sound", "check_losses", "unsound_loss"]

_MOST = 256  # steps that are kept before they are summed

_MOST_EXPONENT = 709.0  # of e in a double


class StepWindow:
    """Losses summed over the steps where each task was present, and the numbers of its latest present step.

    Plain tensors: as buffers they would be broadcast from rank 0 and saved in checkpoints. They are made once, outside
    of compiled steps, and written in place: what a step makes may lie where CUDA graphs write the next step's.
    Adding a step launches a few kernels and reads nothing. On eager CPU, where launches are what costs, it has none:
    steps are kept as they are, and summed many at a time.

    Attributes:
        total: the weighted total of the latest batch, detached; None before the first, and where steps are compiled.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.sums: Tensor | None = None  # steps with labels, √|loss| (NaN or inf once one is unsound), loss: [3, T]
        self.latest: Tensor  # weights, and log-variances where there are any, [2, T]
        self._kept: list[tuple[Tensor, ...]] = []  # losses, presence, and what is in `latest`, [T] each

    def prepare(self, like: Tensor) -> None:
        """Make the tensors of a vector's `[T]` length, type and device, if there are none on it."""
        if self.sums is None or self.sums.device != like.device:
            self.sums = like.new_zeros(3, len(like))
            self.latest = like.new_full((2, len(like)), torch.nan)

    def add(self, losses: Tensor, present: Tensor, weighting: Weighting, weighted: Weighted) -> None:
        """Note one step: detached losses and presence, `[T]` each, and what a weighting made of them."""
        latest = weighted.weights, weighted.weights if weighted.log_variances is None else weighted.log_variances
        if not torch.compiler.is_compiling():
            self.total = weighted.total.detach()
            self.prepare(losses)
        if reads_values(losses):
            self._kept.append((losses, present, *latest))
            if len(self._kept) == _MOST:
                self._sum_kept(weighting)
            return
        if self.sums is None or self.sums.device != losses.device:
            return  # compiled, and `check_setup` has not been called: nobody watches
        self.sums.add_(torch.stack([present.to(losses.dtype), weighting.roots(losses), losses]))
        self.latest.copy_(torch.where(present, torch.stack(latest), self.latest))

    def _sum_kept(self, weighting: Weighting) -> None:
        if not self._kept:
            return
        losses, present, *latest = (torch.stack(vectors) for vectors in zip(*self._kept, strict=True))
        self._kept.clear()
        self.prepare(losses[0])
        assert self.sums is not None
        self.sums.add_(torch.stack([present.to(losses.dtype), weighting.roots(losses), losses]).sum(1))
        ever, last = (present * torch.arange(1, len(present) + 1)[:, None]).max(0)
        newest = torch.stack(latest).gather(1, last.expand(2, 1, -1)).squeeze(1)
        self.latest.copy_(torch.where(ever > 0, newest, self.latest))

    def empty(self) -> None:
        """Forget all."""
        self._kept.clear()
        if self.sums is not None:
            self.sums.zero_()

    def take(self, weighting: Weighting, keep: bool = False) -> dict[str, dict[str, float]]:
        """Return the row, by log key and task, and empty the window unless it is to keep all; one copy to the host.

        Tasks without a label since the last row are left out, and keys that the weighting does not have.
        """
        self._sum_kept(weighting)
        if self.sums is None:
            return {}
        steps, roots, losses = self.sums
        mean_losses = losses / steps.clamp(min=1)
        vectors = [steps, roots, mean_losses, weighting.trunk_weights(self.latest[0])]
        optimum = weighting.optimum(mean_losses, steps)
        if weighting.log_variance is not None and optimum is not None:
            vectors += [self.latest[1], optimum]
        columns = torch.stack([vector.to(mean_losses.dtype) for vector in vectors]).T.tolist()
        if not keep:
            self.empty()
        rows = {task: column for task, column in zip(weighting.tasks, columns, strict=True) if column[0] > 0}
        if not rows:
            return {}
        for task, column in rows.items():
            if not math.isfinite(column[1]):
                normalised = task in weighting.normalised
                found = f"a value that is {'' if normalised else 'negative, '}NaN or inf since the last logged step"
                raise ValueError(unsound_loss(task, found, normalised, negative=not normalised))
        weighted = {task: abs(column[2] * column[3]) for task, column in rows.items()}
        total = sum(weighted.values())
        row = {
            "loss": {task: column[2] for task, column in rows.items()},
            "weight": {task: column[3] for task, column in rows.items()},
            "loss_share": {task: value / total for task, value in weighted.items() if total > 0},
        }
        if len(vectors) > 4:
            s = {task: (column[4], column[5]) for task, column in rows.items() if math.isfinite(column[4])}
            row["sigma"] = {task: math.exp(min(own / 2, _MOST_EXPONENT)) for task, (own, _) in s.items()}
            row["sigma_gap"] = {
                task: math.expm1(min((own - best) / 2, _MOST_EXPONENT)) for task, (own, best) in s.items()
            }
        return row


def all_sound(weighting: Weighting, values: Tensor) -> bool:
    """Whether every loss, of `[T]` values, is one that a weighting can use; elsewhere than on eager CPU one read."""
    if weighting.normalised or not reads_values(values):
        return math.isfinite(weighting.roots(values).sum().item())
    least, most = torch.aminmax(values)
    return least.item() >= 0 and most.item() < math.inf


def check_losses(weighting: Weighting, values: Tensor, allow_nonfinite: bool) -> dict[str, float]:
    """Return the losses, of `[T]` values, that no weighting can use: negative, NaN or inf.

    Raises:
        ValueError: there is one, other than those that are not finite where these are allowed.
    """
    found = {
        name: value
        for name, value in zip(weighting.tasks, values.tolist(), strict=True)
        if not math.isfinite(value) or (value < 0 and name not in weighting.normalised)
    }
    for name, value in found.items():
        if not allow_nonfinite or math.isfinite(value):
            negative = -math.inf < value < 0
            raise ValueError(unsound_loss(name, f"{value:g}", name in weighting.normalised, negative=negative))
    return found


def unsound_loss(task: str, found: str, normalised: bool = False, *, negative: bool = False) -> str:
    """The sentence for a loss that no weighting can use; that of a normalised likelihood may be negative.

    Args:
        task: whose loss it is.
        found: what it is.
        normalised: whether the task's likelihood is.
        negative: whether it is, or may be, a loss that is negative by its nature.
    """
    mend = (
        "; one that may be negative, as a Gaussian NLL or a cosine, has no σ to learn: make its task 'constant', or "
        "HeteroscedasticGaussian() whose head gives a σ of its own"
    )
    return (
        f"the loss of task {task!r} should be finite{'' if normalised else ' and at least 0'}: found {found}; look at "
        f"its labels, its output and the learning rate{mend if negative else ''}"
    )
