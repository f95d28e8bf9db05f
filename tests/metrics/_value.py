"""A metric's number of one batch."""

from __future__ import annotations

from typing import Any

import torch
from torchmetrics import Metric


def value(metric: Metric, *batch: torch.Tensor) -> Any:
    metric.update(*batch)
    return metric.compute()
