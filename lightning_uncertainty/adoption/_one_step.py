"""A fit of one step, that is only a look."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from lightning_uncertainty.adoption._structure import base_of

__all__ = ["Looked", "OneBatch", "has_loaders", "quietly", "trainer_of"]


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


def has_loaders(data: Any) -> bool:
    """Whether data are a DataLoader, or a list or mapping of them, and not a batch."""
    parts = data.values() if isinstance(data, Mapping) else data if isinstance(data, list | tuple) else [data]
    return any(isinstance(part, DataLoader) for part in parts)


def trainer_of(kind: type) -> Any:
    """Return a Trainer for one step, of the namespace that the host is of."""
    if base_of(kind).__module__.startswith("lightning."):
        import lightning.pytorch as namespace
    else:
        import pytorch_lightning as namespace  # type: ignore[no-redef]
    quiet: Any = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return namespace.Trainer(
        accelerator="cpu", devices=1, max_steps=1, limit_val_batches=0, num_sanity_val_steps=0, **quiet
    )


@contextmanager
def quietly() -> Iterator[None]:
    """Have Lightning say nothing of a fit that is a look."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
