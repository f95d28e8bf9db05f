"""Logs σ, effective weights and losses; keeps their history; says when something looks wrong."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, Literal

import torch

from lightning_uncertainty.callbacks._base import AnyCallback
from lightning_uncertainty.callbacks._history import History
from lightning_uncertainty.callbacks._table import task_table
from lightning_uncertainty.mixin import MultiTaskMixin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["KINDS", "UncertaintyMonitor"]

Kind = Literal["sigma", "sigma_gap", "weight", "weight_share", "loss"]
KINDS: dict[str, str] = {
    "sigma": "σ",
    "sigma_gap": "σ / σ* - 1",
    "weight": "effective weight",
    "weight_share": "share of the weight",
    "loss": "loss",
}
_DOMINANT = 0.95  # share of the weight
_FALLEN = 0.5  # σ now over σ of the first row; shares alone compare units
_FALLING = 0.9  # σ now over σ in the middle of the history
_ROWS_TO_JUDGE = 10


class UncertaintyMonitor(AnyCallback):
    """Log every task's σ, effective weight and loss on the Trainer's logging steps, to all its loggers or none.

    Keys are `loss/<task>`, `sigma/<task>`, `sigma_gap/<task>`, `weight/<task>` and `weight_share/<task>`. A row covers
    the training steps since the last row: the mean loss, and the latest σ and weight; a task without labels since then
    is left out. The values are in `trainer.callback_metrics` too, where ModelCheckpoint and EarlyStopping find them. At
    the start of a fit the monitor runs `check_setup`; at its end it prints a table.

    Args:
        prefix: put before every key, for example "uncertainty/".
        progress_bar: whether the progress bar shows every σ.
        table: whether to print the table at the end of a fit.
        max_rows: bound of the history; when it is full every second row is dropped, so that it still spans the run.

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
        self.history = History(max_rows)
        self._last_step = 0
        self._latest: dict[str, dict[str, float]] = {}
        self._warned = False

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the setup."""
        if not isinstance(pl_module, MultiTaskMixin):
            raise TypeError(
                f"UncertaintyMonitor watches a MultiTaskMixin: found {type(pl_module).__name__}; write "
                f"`class {type(pl_module).__name__}(MultiTaskMixin, LightningModule)` and call register_tasks"
            )
        if sum(isinstance(callback, UncertaintyMonitor) for callback in trainer.callbacks) > 1:
            raise ValueError(
                "a Trainer should have one UncertaintyMonitor, which logs to all its loggers: found several; the "
                "second would find nothing left to log"
            )
        pl_module.check_setup()
        pl_module.drop_row()
        self._last_step = trainer.global_step
        self._latest = {}
        self._warned = False

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

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Print the table, of all steps up to the last."""
        self._remember(pl_module.take_row())
        if self.table and not trainer.barebones and trainer.is_global_zero and self._latest:
            print(task_table(pl_module.task_likelihoods(), self._latest, trainer.global_step))

    def state_dict(self) -> dict[str, Any]:
        """Return the history, builtins only."""
        return self.history.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history up where a checkpoint left it."""
        self.history.load_state_dict(state_dict)

    # -- reading -------------------------------------------------------------------------------------------------------

    def to_frame(self) -> DataFrame:
        """Return the history as a pandas frame: index `step`, one column for each log key.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("to_frame needs pandas: pip install 'lightning-uncertainty[plot]'") from error
        return DataFrame(self.history.rows).set_index("step") if self.history.rows else DataFrame()

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
        if kind not in KINDS:
            raise ValueError(f"kind should be one of {', '.join(KINDS)}: found {kind!r}")
        start = f"{self.prefix}{kind}/"
        keys = list(dict.fromkeys(key for row in self.history.rows for key in row if key.startswith(start)))
        if not keys:
            raise ValueError(
                f"there is no {kind} to plot: found {len(self.history.rows)} rows without it; fit with this callback "
                "for at least log_every_n_steps steps, with a weighting that has it"
            )
        try:
            from matplotlib import pyplot
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("plot needs matplotlib: pip install 'lightning-uncertainty[plot]'") from error
        if ax is None:
            _, ax = pyplot.subplots(layout="constrained")
        for key in keys:
            points = [(row["step"], row[key]) for row in self.history.rows if key in row]
            ax.plot(*zip(*points, strict=True), label=key.removeprefix(start))
        ax.set_xlabel("step")
        ax.set_ylabel(KINDS[kind])
        if kind in ("sigma", "weight", "loss"):
            ax.set_yscale("log")
        ax.legend()
        figure = ax.get_figure()
        assert figure is not None
        return figure, ax  # type: ignore[return-value]

    # -- within --------------------------------------------------------------------------------------------------------

    def _log(self, trainer: Any, pl_module: Any, step: int) -> None:
        found = pl_module.take_row()
        if not found:
            return
        self._remember(found)
        row = {f"{self.prefix}{kind}/{task}": value for kind, tasks in found.items() for task, value in tasks.items()}
        self.history.append(step, row)
        for logger in trainer.loggers:
            logger.log_metrics(metrics=row, step=step)
        device = trainer.strategy.root_device
        trainer.callback_metrics.update({key: torch.tensor(value, device=device) for key, value in row.items()})
        if self.progress_bar:
            sigma = {f"σ {task}": value for task, value in found.get("sigma", {}).items()}
            pl_module.log_dict(sigma, prog_bar=True, logger=False)
        self._warn_of_dominance(found["weight_share"])

    def _remember(self, found: dict[str, dict[str, float]]) -> None:
        """Keep each task's latest numbers, for the table at the end."""
        for kind, tasks in found.items():
            self._latest.setdefault(kind, {}).update(tasks)

    def _warn_of_dominance(self, shares: dict[str, float]) -> None:
        """Warn once a fit of a task that took nearly all weight as its σ fell, and whose σ is still falling."""
        rows = self.history.rows
        for task, share in shares.items():
            if self._warned or share <= _DOMINANT or len(shares) == 1 or len(rows) < _ROWS_TO_JUDGE:
                continue
            key = f"{self.prefix}sigma/{task}"
            first, middle, last = (row.get(key, math.nan) for row in (rows[0], rows[len(rows) // 2], rows[-1]))
            if last < _FALLEN * first and last < _FALLING * middle:
                self._warned = True
                warnings.warn(
                    f"task {task!r} takes {share:.0%} of the weight, and its σ has fallen from {first:.3g} to "
                    f"{last:.3g} and is still falling: its loss is heading to zero, as when a model overfits or a task "
                    "is too easy; stop earlier, regularise, or lower its weight with "
                    f"UncertaintyWeighting(base_weights={{{task!r}: ...}})",
                    stacklevel=2,
                )
