"""What the training steps since the last row left behind, on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_uncertainty.weightings import Weighted, Weighting

__all__ = ["StepWindow"]


class StepWindow:
    """Losses summed over the steps where each task was present, and the numbers of its latest present step.

    Plain tensors, made at the first step: as buffers they would be broadcast from rank 0 and saved in checkpoints.
    Adding a step launches a few kernels and reads nothing.
    """

    def __init__(self) -> None:
        self.losses: Tensor | None = None  # sums over steps, [T]
        self.steps: Tensor  # steps with labels, [T]
        self.weights: Tensor  # [T]
        self.log_variances: Tensor | None  # [T]
        self.roots: Tensor  # sums of √loss, [T]: NaN or inf once a loss was negative, NaN or inf

    def add(self, losses: Tensor, roots: Tensor, present: Tensor, weighted: Weighted) -> None:
        """Note one step: detached losses, their square roots, presence, `[T]` each, and what became of them."""
        if self.losses is None or self.losses.device != losses.device:
            self.losses, self.roots, self.steps = losses.clone(), roots, present.to(losses.dtype)
            self.weights, self.log_variances = weighted.weights, weighted.log_variances
            return
        self.losses.add_(losses)
        self.roots.add_(roots)
        self.steps.add_(present.to(losses.dtype))
        self.weights = torch.where(present, weighted.weights, self.weights)
        if weighted.log_variances is not None and self.log_variances is not None:
            self.log_variances = torch.where(present, weighted.log_variances, self.log_variances)

    def take(self, weighting: Weighting) -> dict[str, dict[str, float]]:
        """Return the row, by log key and task, and empty the window; one copy to the host.

        Tasks without a label since the last row are left out, and keys that the weighting does not have.
        """
        if self.losses is None:
            return {}
        mean_losses = self.losses / self.steps.clamp(min=1)
        vectors = [self.steps, self.roots, mean_losses, self.weights]
        optimum = weighting.optimum(mean_losses, self.steps)
        if self.log_variances is not None and optimum is not None:
            vectors += [self.log_variances, optimum]
        columns = torch.stack([vector.to(mean_losses.dtype) for vector in vectors]).T.tolist()
        self.losses = None
        rows = {task: column for task, column in zip(weighting.tasks, columns, strict=True) if column[0] > 0}
        for task, column in rows.items():
            if not math.isfinite(column[1]):
                raise ValueError(unsound_loss(task, "a value that is negative, NaN or inf since the last logged step"))
        total = sum(column[3] for column in rows.values())
        row = {
            "loss": {task: column[2] for task, column in rows.items()},
            "weight": {task: column[3] for task, column in rows.items()},
            "weight_share": {task: column[3] / total for task, column in rows.items() if total > 0},
        }
        if len(vectors) > 4:
            s = {task: (column[4], column[5]) for task, column in rows.items() if math.isfinite(column[4])}
            row["sigma"] = {task: math.exp(own / 2) for task, (own, _) in s.items()}
            row["sigma_gap"] = {task: math.expm1((own - best) / 2) for task, (own, best) in s.items()}
        return row


def unsound_loss(task: str, found: str) -> str:
    """The sentence for a loss that no weighting can use."""
    return (
        f"the loss of task {task!r} should be finite and at least 0: found {found}; look at its labels, its output and "
        "the learning rate"
    )
