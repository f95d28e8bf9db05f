"""Dropout that stays on when the rest of the network predicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from lightning_uncertainty.predictions._modes import switched
from lightning_uncertainty.predictions._noticing import noticing

__all__ = ["classes_that_drop", "mc_dropout"]


@contextmanager
def mc_dropout(module: nn.Module, also: tuple[type[nn.Module], ...] = ()) -> Iterator[None]:
    """Let dropout drop inside the block, and everything else evaluate, BatchNorm above all.

    Dropout is every dropout layer of torch, and what drops inside `nn.MultiheadAttention`, the recurrent layers and
    `nn.TransformerEncoderLayer`. After the block every module is in the mode it was in. What stayed off there, a call
    of functional dropout by a block that evaluates, or a layer that its block did not call, is told once for a network,
    in a warning; within what was compiled nothing is seen.

    Source: Gal & Ghahramani, "Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning",
    ICML 2016.

    Args:
        module: the network.
        also: classes whose own training mode makes them drop, such as a DropPath, or a block that calls
            `torch.nn.functional.dropout(x, p, self.training)`. Their children are not meant.

    Raises:
        ValueError: nothing inside would drop.
        TypeError: `also` are no classes of modules.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()
        >>> with mc_dropout(net):
        ...     [part.training for part in net]
        [False, True]
        >>> net[1].training
        False
    """
    also = classes_that_drop(also)
    if not any(_drops(part) or isinstance(part, also) for part in module.modules()):
        raise ValueError(
            f"{type(module).__name__} should have dropout with p > 0: found none; add nn.Dropout, name classes that "
            "drop by themselves in also=(...), such as a block that calls functional dropout, or use DeepEnsemble"
        )
    fused = nn.TransformerEncoderLayer  # its own mode decides on a path that skips the dropout of its children
    on: tuple[type[nn.Module], ...] = (fused, *also)
    with switched(module, lambda part: _drops(part) or isinstance(part, on)), noticing(module, also, _drops):
        yield


def classes_that_drop(also: Any) -> tuple[type[nn.Module], ...]:
    """Return classes of modules that somebody has listed.

    Raises:
        TypeError: they are none.
    """
    listed = tuple(also) if isinstance(also, Iterable) and not isinstance(also, str | nn.Module) else None
    wrong = [also] if listed is None else [one for one in listed if not _is_class(one)]
    if listed is None or wrong:
        one = wrong[0]
        name = one if isinstance(one, str) else (one if isinstance(one, type) else type(one)).__name__
        found = name if _is_class(one) else f"{one!r}" if isinstance(one, str) else f"an instance of {name}"
        raise TypeError(f"also should be a tuple of classes of modules: found {found}; write also=({name},)")
    return listed


def _is_class(one: Any) -> bool:
    return isinstance(one, type) and issubclass(one, nn.Module)


def _drops(part: nn.Module) -> bool:
    if isinstance(part, _DropoutNd):
        return part.p > 0
    if isinstance(part, nn.RNNBase):
        return part.dropout > 0 and part.num_layers > 1  # between its layers
    return isinstance(part, nn.MultiheadAttention) and part.dropout > 0
