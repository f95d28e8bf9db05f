"""A bar over trials and one over the epochs of the present one, or lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from lightning_uncertainty.callbacks.base import AnyCallback

__all__ = ["TrialProgress"]


class TrialProgress(AnyCallback):
    """Rich's bars on a terminal, lines elsewhere and where rich is not installed; a context manager.

    As a callback of a trial it follows the epochs.

    Args:
        trials: how many there are to run.
        show: whether to show anything.
    """

    def __init__(self, trials: int, show: bool) -> None:
        super().__init__()
        self._bar: Any = None
        self._lines, self._count, self._of = show, 0, trials
        self._name, self._since, self._waits = "", 0.0, 0
        if not show:
            return
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ModuleNotFoundError:
            return
        console = Console(stderr=True)
        if not console.is_terminal:
            return
        self._lines = False
        text = TextColumn("{task.description}", markup=False)
        columns = text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=console)
        self._trials = self._bar.add_task("trials", total=trials)
        self._epochs = self._bar.add_task("epochs", total=None)

    def __enter__(self) -> TrialProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, name: str) -> None:
        """Name the trial that begins."""
        self._name, self._since = name, time.monotonic()
        if self._bar is not None:
            self._bar.reset(self._epochs, description=name, total=None)
        self._say(f"{name} begins")

    def finish(self, failed: str | None = None) -> None:
        """Count a trial, and say why it failed if it did."""
        self._count += 1
        if self._bar is not None:
            self._bar.advance(self._trials)
        end = "is finished" if failed is None else f"failed ({failed})"
        seconds = time.monotonic() - self._since
        self._say(f"{self._name} {end} after {seconds:.1f} s; {self._count} of {self._of} done here")

    def waits(self, held: Sequence[object]) -> None:
        """Say what other processes are at, whenever these are others."""
        if len(held) != self._waits:
            self._waits = len(held)
            self._say(f"waiting for {len(held)} that other processes are at")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Follow the epochs."""
        if self._bar is not None:
            self._bar.update(self._epochs, completed=trainer.current_epoch + 1, total=trainer.max_epochs)

    def _say(self, text: str) -> None:
        if self._lines:
            print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
