"""What the monitor keeps of a fit, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_uncertainty.callbacks._history import History
from lightning_uncertainty.callbacks._plot import Kind, plot_rows
from lightning_uncertainty.callbacks.base import TaskCallback

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["KeptRows"]


class KeptRows(TaskCallback):
    """Rows of training and of evaluation, and what they are of.

    Args:
        prefix: stands before every key of training.
        max_rows: bound of each history.
        module: see `TaskCallback`.

    Raises:
        ValueError: `max_rows` is below 2.
    """

    def __init__(self, prefix: str, max_rows: int, module: str | None) -> None:
        super().__init__(module)
        if max_rows < 2:
            raise ValueError(f"max_rows should be at least 2: found {max_rows}")
        self.prefix = prefix
        self.history, self.evaluations = History(max_rows), History(max_rows)
        self._title = ""
        self._config: dict[str, Any] = {}

    def begin(self, steps: int) -> None:
        """Begin a fit, after so many steps: forget all rows unless it goes on from them."""
        self.history.begin(steps)
        self.evaluations.begin(steps)

    def end(self, steps: int) -> None:
        """Note after how many steps the fit ended."""
        self.history.end(steps)
        self.evaluations.end(steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the histories and what they are of, builtins only."""
        return {
            "history": self.history.state_dict(),
            "evaluations": self.evaluations.state_dict(),
            "title": self._title,
            "config": self._config,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the histories up where a checkpoint left them."""
        self.history.load_state_dict(state_dict["history"])
        self.evaluations.load_state_dict(state_dict["evaluations"])
        self._title, self._config = state_dict["title"], state_dict["config"]

    def to_frame(self) -> DataFrame:
        """Return the history as a pandas frame: index `step`, one column for each log key.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return self.history.to_frame()

    def plot(self, kind: Kind = "sigma", ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw one curve per task.

        Args:
            kind: "sigma", "sigma_gap", "weight", "loss_share" or "loss"; σ, weight and loss on a log axis.
            ax: axes to draw into; a new figure where None.

        Returns:
            The figure and its axes.

        Raises:
            ValueError: there is no such kind, or no row holds it yet.
            ModuleNotFoundError: matplotlib is not installed.
        """
        return plot_rows(self.history.rows, kind, self.prefix, ax)

    def report(self, path: str | Path) -> None:
        """Write both histories as one HTML file that needs no network.

        Args:
            path: where to write it.

        Raises:
            ValueError: there is no row yet.
            ModuleNotFoundError: plotly is not installed.
        """
        if not self.history.rows:
            raise ValueError(
                "there is nothing to report: found no rows; fit with this callback and log_every_n_steps above 0, or "
                "load a checkpoint of such a fit"
            )
        from lightning_uncertainty.dashboards import Run, write_report

        rows = sorted([*self.history.rows, *self.evaluations.rows], key=lambda row: row["step"])
        write_report(Run(title=self._title, rows=rows, config=self._config), path)
