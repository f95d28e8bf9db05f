"""A metric of what was observed."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_uncertainty.metrics._over_ranks import over_ranks
from lightning_uncertainty.metrics.forms import Form, gaps_of
from lightning_uncertainty.metrics.numbers import made_up, names_of, numbers_of

__all__ = ["MetricPart", "ObservedMetric"]


class ObservedMetric(Metric):
    """A metric that is given observed scalars only, and whose value is None where there were none.

    Over processes its value is that of those that observed something. Where the metric refuses what it was given, as
    R2Score does a single label, the value is None, too, and one warning says so.

    Args:
        metric: any torchmetrics metric; a copy is kept.
        form: what it is given: "scalars", "rows" or "images".

    Raises:
        ValueError: it was made on the meta device, where the numbers that it starts from are lost.

    Example:
        >>> from torchmetrics import MeanAbsoluteError
        >>> metric = ObservedMetric(MeanAbsoluteError())
        >>> metric.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
        >>> metric.compute()
        tensor(1.)
    """

    full_state_update = False
    labels: Tensor

    def __init__(self, metric: Metric, form: Form = "scalars") -> None:
        super().__init__(process_group=metric.process_group, sync_on_compute=metric._to_sync)
        if any(isinstance(first, Tensor) and first.is_meta for first in metric._defaults.values()):
            raise ValueError(
                f"a metric should be made on a device with memory: found {type(metric).__name__} on the meta device, "
                "which forgets what it starts from; make it under `with torch.device('cpu'):`"
            )
        self.metric = metric.clone()
        self.form, self.gaps = form, gaps_of(metric)
        self.left_out: Tensor | int = 0  # rows or images, of this process, in which labels are missing
        self._names: dict[tuple[torch.Size, ...], tuple[str, ...] | None] = {}
        self._observed = False  # by this process
        self._refused = self._told = False
        self.add_state("labels", torch.zeros((), dtype=torch.int64, device="cpu"), dist_reduce_fx="sum")

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """What the metric says of itself."""
        return self.metric.higher_is_better

    def update(self, prediction: Tensor, label: Tensor, *mask: Tensor) -> None:
        if label.numel():
            self.labels += label.shape[0]
            self._observed = True
            self.metric.update(prediction, label, **dict(zip(("mask",), mask, strict=False)))

    def forward(self, prediction: Tensor, label: Tensor, *mask: Tensor) -> None:
        """Update; the value is that of the epoch (torchmetrics' own forward would reset the inner metric)."""
        self.update(prediction, label, *mask)

    def numbers(self) -> dict[str, Tensor]:
        """Return the numbers of the value by name, "" where it is one; empty where nothing was observed."""
        return numbers_of(self.compute())

    def names(self, prediction: Tensor, label: Tensor, *mask: Tensor) -> tuple[str, ...] | None:
        """Return the names of the numbers, whatever is observed; None where they are not known yet.

        A copy of the metric is tried on labels made up in the shape of these, the same on every process.
        """
        shapes = (prediction.shape[1:], label.shape[1:])
        if shapes not in self._names:
            like = made_up(prediction.shape[1:], label.shape[1:], label)
            batch = (*like, *(torch.ones_like(like[1], dtype=torch.bool) for _ in mask))
            try:
                self._names[shapes] = names_of(self.metric, *batch)
            except Exception:  # of another's code; labels as they are may do
                self._names[shapes] = None
        return self._names[shapes]

    def compute(self) -> Any:
        if not self.labels:
            return None
        with over_ranks(self.metric, self._observed), warnings.catch_warnings():
            if not self._observed:  # where a metric has a synchronisation of its own
                warnings.filterwarnings("ignore", message="The ``compute`` method", category=UserWarning)
            try:
                return self.metric.compute()
            except ValueError as error:
                reason = str(error)
        self._refuse(reason)
        return None

    def _refuse(self, reason: str) -> None:
        if not self._refused:
            self._refused = True
            warnings.warn(
                f"{type(self.metric).__name__} has no value of {self.labels.item()} labels and is not logged: {reason}",
                stacklevel=3,
            )

    def leave_out(self, count: Tensor) -> None:
        """Count rows or images that are not given to the metric, as labels are missing in them."""
        self.left_out = self.left_out + count

    def reset(self) -> None:
        if self.left_out and not self._told:  # only now is the epoch over
            self._told = True
            warnings.warn(
                f"{int(self.left_out)} {self.form} are not given to {type(self.metric).__name__}, as labels are "
                "missing in them; take a metric with ignore_index, or one whose update takes a mask",
                stacklevel=2,
            )
        self.left_out = 0
        super().reset()
        self.metric.reset()
        self._observed = False


class MetricPart(Metric):
    """One number of several that an `ObservedMetric` has, logged under a name of its own.

    Args:
        whole: the metric, which is updated in its place.
        name: of the number.
    """

    full_state_update = False

    def __init__(self, whole: ObservedMetric, name: str) -> None:
        super().__init__()
        self._whole, self.name = (whole,), name  # within a tuple: it is no child of this

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """What the metric says of itself."""
        return self._whole[0].higher_is_better

    def update(self, *batch: Tensor) -> None:
        """Do nothing: the whole is updated."""

    def compute(self) -> Tensor | None:
        return self._whole[0].numbers().get(self.name)

    def reset(self) -> None:
        super().reset()
        self._whole[0].reset()

    def _wrap_compute(self, compute: Any) -> Any:
        return compute  # the whole is what is reduced over processes and kept
