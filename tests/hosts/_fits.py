"""What the tests of hosts share: quiet fits, the gradients of a first step, and a fit that was resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from torch import nn

from lightning_uncertainty import AnalyticUncertaintyWeighting, UncertaintyMonitor, UncertaintyWeighting
from lightning_uncertainty.weightings import Weighting

QUIET = {
    "accelerator": "cpu",
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "log_every_n_steps": 1,
    "logger": False,
    "num_sanity_val_steps": 0,
}
RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
"""Which process this is, of how many that train together."""
HOST_WARNS = pytest.mark.filterwarnings("ignore", "error:::lightning_uncertainty")
"""What hosts and their own dependencies warn of is theirs; what this package warns of is a failure."""
Tensors = dict[str, torch.Tensor]


class Gradients(Callback):
    """Keeps what every optimizer is about to step with, the first time."""

    def __init__(self) -> None:
        self.seen: Tensors = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter in pl_module.named_parameters():
            if id(parameter) in own and parameter.grad is not None:
                self.seen.setdefault(name, parameter.grad.clone())


class Seeded(Callback):
    """Draws the same numbers in a step, whenever it comes."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(1000 * trainer.current_epoch + batch_idx)


def first_gradients(pl: ModuleType, module: Any, loader: Any, *callbacks: Any, **options: Any) -> Tensors:
    """Fit for one step, or as the options say; return the first gradient of every parameter."""
    gradients = Gradients()
    fitted = pl.Trainer(**{**QUIET, "max_steps": 1, "callbacks": [*callbacks, gradients], **options})
    fitted.fit(module, loader)
    return gradients.seen


def gradients(network: nn.Module, loss: torch.Tensor) -> Tensors:
    """Return the gradients that a loss gives a network, by name."""
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have the same parameters and buffers, to the last bit."""
    first, second = one.state_dict(), other.state_dict()
    tensors = [name for name, value in first.items() if isinstance(value, torch.Tensor)]
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in tensors)


def weighted_sum(parts: dict[str, Tensors], weights: dict[str, float]) -> Tensors:
    """Return the gradient of the weighted sum of losses whose gradients are given by task."""
    names = next(iter(parts.values()))
    return {name: sum(weights[task] * own[name] for task, own in parts.items()) for name in names}


def check_gradients(found: Tensors, expected: Tensors, tolerance: float = 1e-5, *, each: bool = True) -> None:
    """They differ by no more than float32 sums in another order do.

    Where not `each`, measured by the largest of all: a bias before a BatchNorm has rounding errors alone.
    """
    assert found.keys() == expected.keys()
    largest = max(value.abs().max() for value in expected.values())
    for name, value in found.items():
        scale = (expected[name].abs().max() if each else largest).clamp(min=1e-6)
        assert ((value - expected[name]).abs().max() / scale).item() < tolerance, name


def weighting_of(learnt: bool) -> Weighting:
    """Return what learns its log-variances by the host's optimizer, or what has nothing to learn."""
    return UncertaintyWeighting() if learnt else AnalyticUncertaintyWeighting()


def check_resumed(pl: ModuleType, make: Callable[[], Any], loader: Any, folder: Path, **options: Any) -> Path:
    """A fit that takes up a checkpoint of its middle ends, to the last bit, as one that never stopped.

    Every step draws the same numbers in both. Return the last checkpoint.
    """
    ends = []
    for at in (None, "epoch=1.ckpt"):
        torch.manual_seed(0)
        saving = pl.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        monitor, module = UncertaintyMonitor(table=False), make()
        fitted = pl.Trainer(
            **{**QUIET, "max_epochs": 4, "enable_checkpointing": True, **options},
            callbacks=[Seeded(), monitor, saving],
        )
        fitted.fit(module, loader, ckpt_path=at and folder / at, weights_only=False)
        assert fitted.current_epoch == 4
        ends.append((module.state_dict(), [each.state_dict() for each in fitted.optimizers], monitor.history.rows))
    (state, optimizers, rows), (state_again, optimizers_again, rows_again) = ends
    assert_equal(state, state_again)
    assert_equal(optimizers, optimizers_again)
    assert rows == rows_again
    return folder / "epoch=3.ckpt"


def assert_equal(one: Any, two: Any, at: str = "") -> None:
    """Compare nested containers, tensors to the last bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), at
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), at
        for key in one:
            assert_equal(one[key], two[key], f"{at}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), at
        for i, pair in enumerate(zip(one, two, strict=True)):
            assert_equal(*pair, f"{at}[{i}]")
    else:
        assert one == two, at


def check_two_are_as_one(found: Callable[[str, int], Any], one: dict[str, Any]) -> None:
    """Both processes of the cell "ddp" have the σ and the state of one that saw all."""
    for rank in (0, 1):
        other = found("ddp", rank)
        assert other["sigma"] == pytest.approx(one["sigma"], rel=1e-4)
        for name, value in one["state"].items():
            torch.testing.assert_close(other["state"][name], value, rtol=1e-3, atol=1e-4)


def check_rows(monitor: UncertaintyMonitor, tasks: set[str], sigmas: set[str]) -> dict[str, float]:
    """Every row has a loss and a weight of every task, and a σ where there is one; return the last."""
    assert monitor.history.rows
    for row in monitor.history.rows:
        for kind, names in (("loss", tasks), ("weight", tasks), ("sigma", sigmas)):
            assert {key.partition("/")[2] for key in row if key.startswith(f"{kind}/")} == names
    return monitor.history.rows[-1]
