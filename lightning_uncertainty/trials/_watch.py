"""What is noted while a trial trains: what each validation finds, the time of a step, the memory."""

from __future__ import annotations

import math
import time
from statistics import median
from typing import Any

import torch

from lightning_uncertainty._step import batches_of
from lightning_uncertainty.callbacks.base import AnyCallback
from lightning_uncertainty.trials.fit import SetupError

__all__ = ["TrialWatch"]

FIRST_STEPS = 5  # they allocate and compile
MOST_STEPS = 1000


class TrialWatch(AnyCallback):
    """Keeps a row of numbers for every validation of a fit, and measures its training steps.

    Attributes:
        rows: what was logged up to each validation, by log key, and the epoch.
        peak_memory: bytes allocated on a CUDA device at most, None elsewhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []
        self.peak_memory: int | None = None
        self._times: list[Any] = []  # seconds; on CUDA pairs of events, which wait for nothing
        self._start: Any = None

    @property
    def step_time(self) -> float | None:
        """Median seconds from the start of a training batch to its end, of the first thousand after some first."""
        later = self._times[min(FIRST_STEPS, len(self._times) // 2) :]
        seconds = [one if isinstance(one, float) else one[0].elapsed_time(one[1]) / 1000 for one in later]
        return median(seconds) if seconds else None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse a fit of which nothing could be kept.

        Raises:
            ValueError: there is no validation.
        """
        if not trainer.enable_validation:
            raise SetupError(
                "a trial should be validated, as its tasks are compared by what that finds: found no validation; give "
                "validation data and a validation_step that calls weigh(..., stage='val') or task_step(..., 'val')"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse a fit that would end before its first validation, and forget the memory of other fits.

        Raises:
            SetupError: it would.
        """
        first = _first_validation(trainer)
        most = batches_of(
            trainer, trainer.max_steps if pl_module.automatic_optimization else -1
        )  # else no step a batch
        if first > most:
            raise SetupError(
                f"a trial should be validated before its end: found the first validation after {first:g} training "
                f"batches and the end after {most:g}; give the Trainer more max_epochs or max_steps, or a smaller "
                "val_check_interval or check_val_every_n_epoch"
            )
        if (device := trainer.strategy.root_device).type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        if len(self._times) < FIRST_STEPS + MOST_STEPS:
            self._start = self._now(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop it."""
        if self._start is not None:
            end = self._now(trainer)
            self._times.append(end - self._start if isinstance(end, float) else (self._start, end))
            self._start = None

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep a row."""
        if trainer.sanity_checking:
            return
        logged = {key: value.item() for key, value in trainer.callback_metrics.items() if value.numel() == 1}
        self.rows.append({"epoch": float(trainer.current_epoch), **logged})

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Look once more.

        Raises:
            ValueError: no validation came, as where the time was up.
        """
        if not self.rows:
            raise ValueError("no validation came before the end of the fit")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Wait for the device, and ask it for its memory."""
        if (device := trainer.strategy.root_device).type == "cuda":
            torch.cuda.synchronize(device)
            self.peak_memory = torch.cuda.max_memory_allocated(device)

    def _now(self, trainer: Any) -> Any:
        if trainer.strategy.root_device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _first_validation(trainer: Any) -> float:
    """Return after how many training batches it comes; 0 where that cannot be told."""
    batches, within, every = trainer.num_training_batches, trainer.val_check_batch, trainer.check_val_every_n_epoch
    if within is None:  # it goes by the clock
        return 0
    if every is None:
        return float(batches if math.isinf(within) else within)
    return float((every - 1) * batches + min(within, batches) if every > 1 else min(within, batches))


def _batches(trainer: Any, module: Any) -> float:
    """Return how many training batches there are at most; only automatic optimization has a step for every batch."""
    return batches_of(trainer, trainer.max_steps if module.automatic_optimization else -1)
