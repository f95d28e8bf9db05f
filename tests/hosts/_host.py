"""What the tests of several hosts compare."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

HOST_WARNS = pytest.mark.filterwarnings(
    "ignore", "error:::lightning_uncertainty", "ignore:task .* takes .* of the weight:UserWarning"
)
"""What hosts and their own dependencies warn of is theirs; what this package warns of is a failure.

But for its advice about a task whose σ falls by half: here all do, while the network learns.
"""

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}
RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
"""Which process this is, of how many that train together."""
ROW = ("loss", "sigma", "weight", "loss_share", "sigma_gap")


def check_rows(rows: list[Mapping[str, float]], steps: int, tasks: Iterable[str]) -> None:
    """Check that a monitor kept a row for every step, with every column of every task."""
    assert [row["step"] for row in rows] == list(range(steps))
    for row in rows:
        assert {f"{column}/{task}" for column in ROW for task in tasks} <= set(row)


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradients that a loss gives a network, by name."""
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def check_same_gradients(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    """Check that two losses give the same parameters the same gradients, to `tolerance` of the largest."""
    assert ours
    assert ours.keys() == theirs.keys()
    size = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert size > 0
    for name, gradient in theirs.items():
        torch.testing.assert_close(
            ours[name], gradient, rtol=0, atol=tolerance * size, msg=lambda m, name=name: f"{name}: {m}"
        )


def same(one: nn.Module, other: nn.Module, compare: Callable[[Tensor, Tensor], bool] = torch.equal) -> bool:
    """Return whether two networks have the same parameters and buffers."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        compare(value, second[key]) for key, value in first.items() if isinstance(value, Tensor)
    )
