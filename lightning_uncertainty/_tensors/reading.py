"""Where a look at a value costs nothing."""

from __future__ import annotations

import torch

__all__ = ["reads_values"]


def reads_values(device: torch.device) -> bool:
    """Whether a value may be read on the training path: on eager CPU, where it costs no synchronisation."""
    return device.type == "cpu" and not torch.compiler.is_compiling()
