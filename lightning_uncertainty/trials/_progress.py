"""A bar over trials, and one over the epochs of the present one."""

from __future__ import annotations

from typing import Any

from lightning_uncertainty.callbacks.base import AnyCallback

__all__ = ["TrialProgress"]


class TrialProgress(AnyCallback):
    """Rich's bars on a terminal, nothing elsewhere or where rich is not installed; a context manager.

    As a callback of a trial it follows the epochs.

    Args:
        trials: how many there are to run.
        show: whether to show anything.
    """

    def __init__(self, trials: int, show: bool) -> None:
        super().__init__()
        self._bar: Any = None
        if not show:
            return
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ModuleNotFoundError:
            return
        console = Console(stderr=True)
        if not console.is_terminal:  # where a disabled bar of rich 13.0 leaves an empty line
            return
        text = TextColumn("{task.description}")
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
        if self._bar is not None:
            self._bar.reset(self._epochs, description=name, total=None)

    def finish(self) -> None:
        """Count a trial."""
        if self._bar is not None:
            self._bar.advance(self._trials)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Follow the epochs."""
        if self._bar is not None:
            self._bar.update(self._epochs, completed=trainer.current_epoch + 1, total=trainer.max_epochs)
