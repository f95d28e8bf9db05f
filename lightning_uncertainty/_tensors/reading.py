"""Where a look at a value costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["reads_values"]


def reads_values(of: Tensor) -> bool:
    """Whether values may be read on the training path: on eager CPU, where it costs no synchronisation."""
    return of.is_cpu and not torch.compiler.is_compiling()
