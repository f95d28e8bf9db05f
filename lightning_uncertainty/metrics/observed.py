"""A metric of what was observed."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["ObservedMetric"]


class ObservedMetric(Metric):
    """A metric that is given observed scalars only, and whose value is None where there were none.

    Args:
        metric: any torchmetrics metric; a copy is kept.

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

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        if any(isinstance(first, Tensor) and first.is_meta for first in metric._defaults.values()):
            raise ValueError(
                f"a metric should be made on a device with memory: found {type(metric).__name__} on the meta device, "
                "which forgets what it starts from; make it under `with torch.device('cpu'):`"
            )
        self.metric = metric.clone()
        self.add_state("labels", torch.zeros((), dtype=torch.int64, device="cpu"), dist_reduce_fx="sum")

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """What the metric says of itself."""
        return self.metric.higher_is_better

    def update(self, prediction: Tensor, label: Tensor) -> None:
        if label.numel():
            self.labels += label.shape[0]
            self.metric.update(prediction, label)

    def forward(self, prediction: Tensor, label: Tensor) -> None:
        """Update; the value is that of the epoch (torchmetrics' own forward would reset the inner metric)."""
        self.update(prediction, label)

    def compute(self) -> Any:
        with warnings.catch_warnings():
            if not self.metric.update_called:  # no label on this rank: its empty state joins those of the others
                warnings.filterwarnings("ignore", message="The ``compute`` method", category=UserWarning)
            value = self.metric.compute()
        return value if self.labels > 0 else None

    def reset(self) -> None:
        super().reset()
        self.metric.reset()
