"""Logs σ, effective weights and losses; keeps their history; says when something looks wrong."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_uncertainty.callbacks._dominance import dominance
from lightning_uncertainty.callbacks._history import History
from lightning_uncertainty.callbacks._lateness import lateness
from lightning_uncertainty.callbacks._plot import Kind, plot_rows
from lightning_uncertainty.callbacks._table import COLUMNS, render_tasks, task_rows
from lightning_uncertainty.callbacks.base import AnyCallback, check_module, offer
from lightning_uncertainty.dashboards.loggers import log_config
from lightning_uncertainty.dashboards.tensorboard import log_tensorboard_layout, sigma_optima
from lightning_uncertainty.dashboards.wandb import log_task_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["UncertaintyMonitor"]


class UncertaintyMonitor(AnyCallback):
    """Log every task's σ, effective weight and loss on the Trainer's logging steps, to all its loggers or none.

    Keys are `loss/<task>`, `sigma/<task>`, `sigma_gap/<task>`, `weight/<task>` and `weight_share/<task>`. A row covers
    the training steps since the last row: the mean loss, and the latest σ and weight; a task without labels since then
    is left out, and so is σ where a likelihood is normalised. The values are in `trainer.callback_metrics` too, where
    ModelCheckpoint and EarlyStopping find them.

    At the start of a fit the monitor runs `check_setup`, puts weighting, likelihoods and the meaning of every σ into
    the loggers' config under "uncertainty", and gives TensorBoard a layout with all tasks in one chart. At its end it
    prints a table, which wandb gets too. Once in a fit it warns of a task that takes over, and once of a σ that has
    been more than a third off its optimum for 500 steps.

    Args:
        prefix: put before every key, for example "uncertainty/".
        progress_bar: whether the progress bar shows every σ.
        table: whether to print the table at the end of a fit.
        max_rows: bound of each history; when it is full every second row is dropped, so that it still spans the run.

    Attributes:
        history: the rows that were logged in training.
        evaluations: a row of held-out losses and metrics for every validation within a fit.

    Raises:
        ValueError: `max_rows` is below 2, or (at the start of a fit) the Trainer has another monitor.
        TypeError: (at the start of a fit) the module is no `MultiTaskMixin`.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[UncertaintyMonitor()], accelerator="cpu", logger=False)
    """

    def __init__(
        self, prefix: str = "", *, progress_bar: bool = False, table: bool = True, max_rows: int = 10_000
    ) -> None:
        super().__init__()
        if max_rows < 2:
            raise ValueError(f"max_rows should be at least 2: found {max_rows}")
        self.prefix = prefix
        self.progress_bar = progress_bar
        self.table = table
        self.history, self.evaluations = History(max_rows), History(max_rows)
        self._title = ""
        self._config: dict[str, Any] = {}
        self._boards: list[Any] = []  # loggers that have TensorBoard's layout
        self._last_step = 0
        self._latest: dict[str, dict[str, float]] = {}
        self._warned, self._warned_late = False, False

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Tell the loggers what will come, before Lightning writes the hyper-parameters."""
        check_module("UncertaintyMonitor", pl_module)
        if sum(isinstance(callback, UncertaintyMonitor) for callback in trainer.callbacks) > 1:
            raise ValueError(
                "a Trainer should have one UncertaintyMonitor, which logs to all its loggers: found several; the "
                "second would find nothing left to log"
            )
        about = self._about(pl_module)
        own = [task for task in about["sigma_is"] if task not in pl_module.task_weighting.normalised]
        shown = {"sigma": own, "held_out": trainer.enable_validation}
        self._boards = []
        for logger in trainer.loggers if trainer.is_global_zero else []:
            log_config(logger, {"uncertainty": about})
            if log_tensorboard_layout(logger, list(about["likelihood"]), prefix=self.prefix, **shown):
                self._boards.append(logger)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the setup."""
        pl_module.check_setup()
        pl_module.drop_row()
        self._title, self._config = type(pl_module).__name__, {"uncertainty": self._about(pl_module)}
        self._last_step = trainer.global_step
        self._latest = {}
        self._warned, self._warned_late = False, False

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log a row if this is a logging step."""
        stepped = trainer.global_step != self._last_step  # not while gradients accumulate
        self._last_step = trainer.global_step
        every = trainer.log_every_n_steps
        if not stepped or every == 0:
            return
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # as Lightning's own rows and LearningRateMonitor's
        if (step + 1) % every == 0:
            self._log(trainer, pl_module, step)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep a row of what this validation found; one copy to the host."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        computed = trainer._logger_connector.metrics["callback"]  # callback_metrics has those of earlier epochs too
        keys = [key for key in pl_module.task_metrics if key.startswith("val/") and key in computed]
        if keys:
            device = trainer.strategy.root_device
            values = torch.cat([computed[key].to(device).reshape(1) for key in keys]).tolist()
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            self.evaluations.append(step, dict(zip(keys, values, strict=True)))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Print the table, of all steps up to the last, and log it to wandb."""
        self._remember(pl_module.take_row())
        if trainer.barebones or not trainer.is_global_zero or not self._latest:
            return
        about = self._config["uncertainty"]
        rows = task_rows(self._latest, about["likelihood"], about["sigma_is"])
        for logger in trainer.loggers:
            log_task_table(logger, f"{self.prefix}tasks", list(COLUMNS), rows)
        if self.table:
            print(render_tasks(rows, trainer.global_step))

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

    # -- reading -------------------------------------------------------------------------------------------------------

    def to_frame(self) -> DataFrame:
        """Return the history as a pandas frame: index `step`, one column for each log key.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return self.history.to_frame()

    def plot(self, kind: Kind = "sigma", ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw one curve per task.

        Args:
            kind: "sigma", "sigma_gap", "weight", "weight_share" or "loss"; σ, weight and loss on a log axis.
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
                "there is nothing to report: found no rows; fit with this callback for at least log_every_n_steps "
                "steps, or load a checkpoint of such a fit"
            )
        from lightning_uncertainty.dashboards import Run, write_report

        rows = sorted([*self.history.rows, *self.evaluations.rows], key=lambda row: row["step"])
        write_report(Run(title=self._title, rows=rows, config=self._config), path)

    # -- within --------------------------------------------------------------------------------------------------------

    def _log(self, trainer: Any, pl_module: Any, step: int) -> None:
        found = pl_module.take_row()
        if not found:
            return
        self._remember(found)
        row = self._keyed(found)
        self.history.append(step, row)
        optima = self._keyed({"sigma_optimum": sigma_optima(found.get("sigma", {}), found.get("sigma_gap", {}))})
        for logger in trainer.loggers:
            logger.log_metrics(metrics={**row, **optima} if logger in self._boards else row, step=step)
        offer(trainer, row)
        if self.progress_bar:
            sigma = {f"σ {task}": value for task, value in found.get("sigma", {}).items()}
            pl_module.log_dict(sigma, prog_bar=True, logger=False)
        warning = None if self._warned else dominance(self.history.rows, found["weight_share"], self.prefix)
        if warning:
            self._warned = True
            warnings.warn(warning, stacklevel=2)
        late = None if self._warned_late else lateness(self.history.rows, found.get("sigma", {}), self.prefix)
        if late:
            self._warned_late = True
            warnings.warn(late, stacklevel=2)

    def _about(self, pl_module: Any) -> dict[str, Any]:
        """Return what reads the rows: the entry of the loggers' config."""
        return {
            "weighting": repr(pl_module.task_weighting),
            "prefix": self.prefix,
            "likelihood": {task: likelihood.name for task, likelihood in pl_module.task_likelihoods().items()},
            "sigma_is": pl_module.task_weighting.meanings(),
        }

    def _keyed(self, found: dict[str, dict[str, float]]) -> dict[str, float]:
        """Return numbers by log key."""
        return {f"{self.prefix}{kind}/{task}": value for kind, tasks in found.items() for task, value in tasks.items()}

    def _remember(self, found: dict[str, dict[str, float]]) -> None:
        """Keep each task's latest numbers, for the table at the end."""
        for kind, tasks in found.items():
            self._latest.setdefault(kind, {}).update(tasks)
