"""Whether predicted probabilities come true as often as they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_uncertainty._show import unit_axes
from lightning_uncertainty._tensors import reads_values
from lightning_uncertainty.metrics._predictive import add

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Reliability", "ReliabilityDiagram"]


class Reliability(NamedTuple):
    """Predictions binned by their confidence: `[bins + 1]`, of which the last are those that are certain (exactly 1).

    Attributes:
        confidence: mean predicted probability of each bin; NaN where it is empty.
        accuracy: share of these predictions that came true; NaN where it is empty.
        counts: predictions in each bin.
    """

    confidence: Tensor
    accuracy: Tensor
    counts: Tensor

    @property
    def ece(self) -> Tensor:
        """Expected calibration error: mean over predictions of `|accuracy - confidence|` of their bin."""
        gap = torch.where(self.counts > 0, (self.accuracy - self.confidence).abs(), 0.0)
        return (gap * self.counts).sum() / self.counts.sum()


class ReliabilityDiagram(Metric):
    """Confidence and accuracy of predicted probabilities, in bins of equal width: calibrated where they are equal.

    Probabilities of classes `[B, C, ...]` with labels `[B, ...]` are binned by that of the most probable class, which
    came true where it is the label. Probabilities of an event `[...]` with labels 0 and 1 of the same shape are binned
    as they are. Bins are closed below, and exactly 1 is a bin of its own, as in torchmetrics: `ece` is its
    calibration error with `norm="l1"`. The value is a `Reliability`, or None where no label was observed.

    Args:
        bins: of equal width.
        ignore_index: label of a missing class; a missing label of an event may also be NaN.

    Raises:
        ValueError: there is no bin.

    Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.

    Example:
        >>> metric = ReliabilityDiagram(bins=2)
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.2, 0.8]]), torch.tensor([0, 1, 1, 0]))
        >>> metric.compute()
        Reliability(confidence=tensor([   nan, 0.8000,    nan]), accuracy=tensor([   nan, 0.7500,    nan]), ...)
        >>> metric.compute().ece
        tensor(0.0500)
    """

    full_state_update = False
    confidence: Tensor
    correct: Tensor
    count: Tensor

    def __init__(self, bins: int = 15, *, ignore_index: int = -100) -> None:
        if bins < 1:
            raise ValueError(f"bins should be 1 or more: found {bins}; 15 are usual")
        super().__init__()
        self.bins = bins
        self.ignore_index = ignore_index
        self.add_state("confidence", torch.zeros(2, bins + 1, dtype=torch.float32, device="cpu"), dist_reduce_fx="sum")
        self.add_state("correct", torch.zeros(bins + 1, dtype=torch.int64, device="cpu"), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(bins + 1, dtype=torch.int64, device="cpu"), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add predictions and labels.

        Args:
            probabilities: of classes `[B, C, ...]`, or of an event `[...]`.
            labels: classes `[B, ...]`, or 0 and 1 `[...]`.

        Raises:
            ValueError: shapes do not fit, a probability is not between 0 and 1, or a label is of no class (eager CPU).
        """
        classes = _classes(probabilities, labels)
        labels = labels.nan_to_num(nan=self.ignore_index)
        observed = labels.long() != self.ignore_index  # in uint8, -100 would be class 156
        if reads_values(probabilities):
            _check_values(probabilities, labels[observed], classes or 2)
        if classes:
            confidence, predicted = probabilities.float().max(1)
            correct = predicted == labels
        else:
            confidence, correct = probabilities.float(), labels == 1
        edges = torch.linspace(0, 1, self.bins + 1, device=confidence.device)
        place = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, self.bins)
        members = [(place == number) & observed for number in range(self.bins + 1)]
        sums = [torch.where(member, confidence, 0.0).sum() for member in members]
        self.confidence = add(self.confidence, torch.stack(sums))
        self.correct += torch.stack([(member & correct).sum() for member in members])
        self.count += torch.stack([member.sum() for member in members])

    def compute(self) -> Reliability | None:
        if self.count.sum() == 0:
            return None
        return Reliability(self.confidence.sum(0) / self.count, self.correct / self.count, self.count)

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Axes]:  # type: ignore[override]
        """Draw accuracy against confidence, and the share of predictions, into axes or a new figure; return both.

        Raises:
            ValueError: no label was observed.
            ModuleNotFoundError: matplotlib is not installed.
        """
        found = self.compute()
        if found is None:
            raise ValueError("a plot should be of observed labels: found none; update the metric first")
        figure, ax = unit_axes(ax, "confidence", "accuracy")
        filled = found.counts > 0
        confidence, accuracy, counts = (tensor[filled].cpu().numpy() for tensor in found)
        ax.bar(confidence, counts / counts.sum(), width=0.8 / self.bins, color="0.85", label="share of predictions")
        ax.plot(confidence, accuracy, "o-", label=f"bins, ECE {found.ece.item():.3g}")
        ax.legend()
        return figure, ax


def _classes(probabilities: Tensor, labels: Tensor) -> int:
    """Return the number of classes, 0 for an event."""
    if probabilities.shape == labels.shape:
        return 0
    if probabilities.dim() > 1 and probabilities.shape[:1] + probabilities.shape[2:] == labels.shape:
        return probabilities.shape[1]
    raise ValueError(
        "probabilities should be [B, C, ...] for labels [B, ...], or have their shape: found "
        f"{list(probabilities.shape)} for labels {list(labels.shape)}; reshape one of them"
    )


def _check_values(probabilities: Tensor, labels: Tensor, classes: int) -> None:
    wrong = (probabilities < -1e-5) | (probabilities > 1 + 1e-5)
    if wrong.any():
        raise ValueError(
            f"probabilities should be between 0 and 1: found {probabilities[wrong][0].item():g}; take the softmax or "
            "sigmoid of logits first"
        )
    wrong = (labels < 0) | (labels >= classes) | (labels != labels.long())
    if wrong.any():
        raise ValueError(
            f"labels should be whole numbers from 0 to {classes - 1}: found {labels[wrong][0].item():g}; "
            "mark a missing one by ignore_index"
        )
