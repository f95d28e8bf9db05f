"""A metric of what was observed."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_uncertainty.metrics._over_ranks import over_ranks

__all__ = ["ObservedMetric"]


class ObservedMetric(Metric):
    """A metric that is given observed scalars only, and whose value is None where there were none.

    Over processes its value is that of those that observed something. Where the metric refuses what it was given, as
    R2Score does a single label, the value is None, too, and one warning says so.

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
        super().__init__(process_group=metric.process_group, sync_on_compute=metric._to_sync)
        if any(isinstance(first, Tensor) and first.is_meta for first in metric._defaults.values()):
            raise ValueError(
                f"a metric should be made on a device with memory: found {type(metric).__name__} on the meta device, "
                "which forgets what it starts from; make it under `with torch.device('cpu'):`"
            )
        self.metric = metric.clone()
        self._observed = False  # by this process
        self._refused = False
        self.add_state("labels", torch.zeros((), dtype=torch.int64, device="cpu"), dist_reduce_fx="sum")

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """What the metric says of itself."""
        return self.metric.higher_is_better

    def update(self, prediction: Tensor, label: Tensor) -> None:
        if label.numel():
            self.labels += label.shape[0]
            self._observed = True
            self.metric.update(prediction, label)

    def forward(self, prediction: Tensor, label: Tensor) -> None:
        """Update; the value is that of the epoch (torchmetrics' own forward would reset the inner metric)."""
        self.update(prediction, label)

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

    def reset(self) -> None:
        super().reset()
        self.metric.reset()
        self._observed = False
