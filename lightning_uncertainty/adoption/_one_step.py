"""A fit of one step, that is only a look."""

from __future__ import annotations

import copy
import logging
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_uncertainty.adoption._structure import base_of

__all__ = ["Looked", "drawn", "looking", "redrawing", "trainer_of", "ways_to_take"]


class Looked(Exception):  # noqa: N818 - no error
    """Ends a fit whose first step was looked at."""


class OneBatch:
    """A loader of one batch."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        yield copy.deepcopy(self._batch)  # a host may change it


def ways_to_take(data: Any) -> Iterator[Any]:
    """Yield what a Trainer can fit on: loaders as they are; else a batch and, should that fail, the first within."""
    if _has_loaders(data):
        yield data
        return
    if not isinstance(data, Dataset | Iterator):
        yield OneBatch(data)
    if isinstance(data, Iterable | Dataset) and not isinstance(data, Tensor | Mapping | str | OneBatch):
        with suppress(StopIteration):
            yield OneBatch(next(iter(data)))


def _has_loaders(data: Any) -> bool:
    """Whether data are a DataLoader, or a list or mapping of them, and not a batch."""
    parts = data.values() if isinstance(data, Mapping) else data if isinstance(data, list | tuple) else [data]
    return any(isinstance(part, DataLoader) or type(part).__name__ == "CombinedLoader" for part in parts)


def trainer_of(kind: type, folder: str) -> Any:
    """Return a Trainer for one step, of the namespace that the host is of, which writes into a folder."""
    if base_of(kind).__module__.startswith("lightning."):
        import lightning.pytorch as namespace
    else:
        import pytorch_lightning as namespace  # type: ignore[no-redef]
    quiet: Any = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    once: Any = dict.fromkeys(("devices", "max_epochs", "max_steps", "limit_train_batches"), 1)
    nothing: Any = dict.fromkeys(("limit_val_batches", "num_sanity_val_steps"), 0)
    return namespace.Trainer(accelerator="cpu", default_root_dir=folder, **nothing, **once, **quiet)


def drawn() -> Callable[[], None]:
    """Return what puts the global generators back to where they are now."""
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - hosts draw of it
    of_devices = torch.cuda.get_rng_state_all() if cuda else []

    def put_back() -> None:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(of_devices)

    return put_back


@contextmanager
def redrawing(back_to: Callable[[], None] | None = None) -> Iterator[None]:
    """Draw within from where generators once were, or are, and leave them as they are."""
    put_back = drawn()
    if back_to is not None:
        back_to()
    try:
        yield
    finally:
        put_back()


@contextmanager
def looking() -> Iterator[str]:
    """Have a fit that is a look say nothing, draw nothing and compile nothing; yield a folder that goes with it."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    stance = getattr(torch.compiler, "set_stance", None)  # torch 2.6
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            TemporaryDirectory() as folder,
            warnings.catch_warnings(),
            redrawing(),
            nullcontext() if stance is None else stance("force_eager"),
        ):
            warnings.simplefilter("ignore")
            yield folder
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
