"""Logs σ, effective weights and losses; keeps their history; says when something looks wrong."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

from tqdm import tqdm

from lightning_uncertainty.callbacks._dominance import dominance
from lightning_uncertainty.callbacks._kept import KeptRows
from lightning_uncertainty.callbacks._lateness import lateness
from lightning_uncertainty.callbacks._table import COLUMNS, render_tasks, task_rows
from lightning_uncertainty.callbacks._total import TotalWatch, monitored, total_monitored
from lightning_uncertainty.callbacks.base import find_labels, offer, validated, warn_of_no_rows
from lightning_uncertainty.dashboards.loggers import log_config, log_row, refusable
from lightning_uncertainty.dashboards.tensorboard import log_tensorboard_layout, sigma_optima
from lightning_uncertainty.dashboards.wandb import log_task_table

__all__ = ["UncertaintyMonitor"]


class UncertaintyMonitor(KeptRows):
    """Log every task's σ, effective weight and loss on the Trainer's logging steps, to all its loggers or none.

    Keys are `loss/<task>`, `sigma/<task>`, `sigma_gap/<task>`, `weight/<task>` and `loss_share/<task>`. A row covers
    the training steps since the last row: the mean loss, the latest σ and weight, and the share `|w L| / Σ |w L|` of
    the weighted loss, without penalties. A task without labels since then is left out, and so is σ where a likelihood
    is normalised. The last row of a fit, finished or interrupted, holds the steps that were left over. The values are
    in `trainer.callback_metrics` too, where ModelCheckpoint and EarlyStopping find them; before every validation and at
    the end of every epoch these are of all steps so far.

    At the start of a fit the monitor runs `check_setup`, puts weighting, likelihoods and the meaning of every σ into
    the loggers' config under "uncertainty", and gives TensorBoard a layout with all tasks in one chart. At its end it
    prints a table, which wandb gets too. Once in a fit it warns of a task that takes over, once of a σ that has been
    more than a third off its optimum for 500 steps, and once of a callback or scheduler that monitors the weighted
    total.

    Args:
        prefix: put before every key, for example "uncertainty/".
        progress_bar: whether the progress bar shows every σ.
        table: whether to print the table at the end of a fit.
        max_rows: bound of each history; when it is full every second row is dropped, so that it still spans the run.
        module: path of the `MultiTaskMixin` in the module that the Trainer runs, as "net"; needed where it has several.

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
        self,
        prefix: str = "",
        *,
        progress_bar: bool = False,
        table: bool = True,
        max_rows: int = 10_000,
        module: str | None = None,
    ) -> None:
        super().__init__(prefix, max_rows, module)
        self.progress_bar = progress_bar
        self.table = table
        self._boards: list[Any] = []  # loggers that have TensorBoard's layout
        self._begun, self._steps, self._step = 0, 0, 0  # steps made before the fit, and up to now; which one is on
        self._fitting, self._fresh = False, False  # is there a fit, and a step that callbacks have not been told of?
        self._latest: dict[str, dict[str, float]] = {}
        self._monitored: dict[str, list[str]] = {}
        self._totals: dict[str, TotalWatch] = {}
        self._warned, self._warned_late = False, False

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Tell the loggers what will come, before Lightning writes the hyper-parameters."""
        net = self.find_tasks(trainer, pl_module)
        found = "found several; the second would find nothing left to log"
        self.refuse_second(trainer, UncertaintyMonitor, f" for a module, which logs to all its loggers: {found}")
        about = self._about(net)
        own = [task for task in about["sigma_is"] if task not in net.task_weighting.normalised]
        shown = {"sigma": own, "held_out": trainer.enable_validation}
        self._boards, self._told = [], set()
        for logger in trainer.loggers if trainer.is_global_zero else []:
            with refusable(logger, "the entry 'uncertainty' of its config"):
                log_config(logger, {"uncertainty": about})
            with refusable(logger, "a layout"):
                if log_tensorboard_layout(logger, list(about["likelihood"]), prefix=self.prefix, **shown):
                    self._boards.append(logger)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the setup, and begin anew unless the fit goes on from what was kept."""
        net = self.tasks_of(pl_module)
        net.check_setup()
        net.drop_row()
        self.begin(trainer.global_step)
        self._title, self._config = type(pl_module).__name__, {"uncertainty": self._about(net)}
        self._begun = self._steps = trainer.global_step
        self._fitting, self._fresh, self._latest = True, False, {}
        self._warned, self._warned_late = False, False
        warn_of_no_rows(trainer)
        weighting = getattr(net.task_weighting, "weighting", net.task_weighting)
        self._monitored = monitored(trainer) if weighting.remembers else {}  # another total is one of the losses alone
        self._totals = {stage: TotalWatch(self._monitored) for stage in ("train", "val")}

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Look what the last epoch logged at its end."""
        self._tell_of_total(self._totals["train"].close(trainer.callback_metrics))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note which step this is, as Lightning's own rows and LearningRateMonitor's do."""
        self._step, self._fresh = trainer.fit_loop.epoch_loop._batches_that_stepped, True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log a row if this is a logging step."""
        net, steps = self.tasks_of(pl_module), trainer.global_step
        stepped = steps != self._steps  # not while gradients accumulate
        self._steps = steps
        every = trainer.log_every_n_steps
        if stepped and every > 0 and (self._step + 1) % every == 0:
            sigma = self._log(trainer, net).get("sigma", {})
            if self.progress_bar:
                shown = {f"σ {task}": value for task, value in sigma.items()}
                pl_module.log_dict(shown, prog_bar=True, logger=False)
        if trainer.fit_loop.epoch_loop._is_training_done or trainer.should_stop:
            self._offer(trainer, net)
        if self._monitored:
            self._tell_of_total(self._totals["train"].look(trainer._results, net.latest_total()))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Have the latest values ready for callbacks that read them after this validation."""
        self._offer(trainer, self.tasks_of(pl_module))

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look what is logged."""
        if self._fitting and self._monitored:
            self._tell_of_total(self._totals["val"].look(trainer._results, self.tasks_of(pl_module).latest_total()))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep a row of what this validation found; one copy to the host."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._tell_of_total(self._totals["val"].close(trainer.callback_metrics))
        values = validated(trainer, pl_module, self.tasks_of(pl_module))
        if values:
            self.evaluations.append(trainer.fit_loop.epoch_loop._batches_that_stepped, values)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Have the latest values ready, where the epoch ended before its last batch."""
        self._offer(trainer, self.tasks_of(pl_module))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the last row; print the table, of all steps up to the last, and log it to wandb."""
        self._finish(trainer, self.tasks_of(pl_module))
        self._tell_of_total(self._totals["train"].close(trainer.callback_metrics))
        if trainer.barebones or not trainer.is_global_zero or self._steps == self._begun:
            return
        about = self._config["uncertainty"]
        rows = task_rows(self._latest, about["likelihood"], about["sigma_is"])
        for logger in trainer.loggers:
            with refusable(logger, "the table of the tasks"):
                log_task_table(logger, f"{self.prefix}tasks", list(COLUMNS), rows)
        if self.table:
            tqdm.write(render_tasks(rows, trainer.global_step))  # on a line of its own, where a bar is unfinished

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Log the last row of a fit that fails; print the table too if somebody interrupts it."""
        if not self._fitting:
            return
        with suppress(Exception):  # what went wrong is told by the exception, not by what it leaves unreadable
            if isinstance(exception, KeyboardInterrupt):
                self.on_train_end(trainer, pl_module)
            else:
                self._finish(trainer, self.tasks_of(pl_module))

    # -- within --------------------------------------------------------------------------------------------------------

    def _log(self, trainer: Any, net: Any, last: bool = False) -> dict[str, dict[str, float]]:
        """Log a row of the steps since the last one, if there are any, and return it."""
        found: dict[str, dict[str, float]] = net.take_row()
        self._fresh = False
        if not found:
            return found
        self._remember(found)
        row, step = self._keyed(found), self._step
        self.history.append(step, row, last)
        optima = self._keyed({"sigma_optimum": sigma_optima(found.get("sigma", {}), found.get("sigma_gap", {}))})
        for logger in trainer.loggers:
            log_row([logger], {**row, **optima} if logger in self._boards else row, step, self._told)
        offer(trainer, row)
        warning = None if self._warned else dominance(self.history.rows, found["weight"], self.prefix)
        if warning:
            self._warned = True
            warnings.warn(warning, stacklevel=2)
        late = None if self._warned_late else lateness(self.history.rows, found.get("sigma", {}), self.prefix)
        if late:
            self._warned_late = True
            warnings.warn(late, stacklevel=2)
        return found

    def _offer(self, trainer: Any, net: Any) -> None:
        """Have callbacks find what the steps since the last row say, before the next one is due."""
        if self._fitting and self._fresh and not trainer.barebones:
            self._fresh = False
            offer(trainer, self._keyed(net.take_row(keep=True)))

    def _tell_of_total(self, key: str | None) -> None:
        """Warn, once in a fit, of a key that is monitored and the weighted total."""
        if key is not None:
            warnings.warn(total_monitored(key, self._monitored[key]), stacklevel=2)
            self._totals = {stage: TotalWatch(()) for stage in self._totals}

    def _finish(self, trainer: Any, net: Any) -> None:
        """Log what steps are left over."""
        self._fitting = False
        self.end(trainer.global_step)
        if trainer.log_every_n_steps > 0:
            self._log(trainer, net, last=True)
        else:
            self._remember(net.take_row())

    def _about(self, net: Any) -> dict[str, Any]:
        """Return what reads the rows: the entry of the loggers' config."""
        labels = {key.partition("/")[2]: label for key, label in find_labels(net).items()}
        return {
            "weighting": repr(net.task_weighting),
            "prefix": self.prefix,
            "likelihood": {task: likelihood.name for task, likelihood in net.task_likelihoods().items()},
            "sigma_is": net.task_weighting.meanings(),
            **({"metrics": labels} if labels else {}),
        }

    def _keyed(self, found: dict[str, dict[str, float]]) -> dict[str, float]:
        """Return numbers by log key."""
        return {f"{self.prefix}{kind}/{task}": value for kind, tasks in found.items() for task, value in tasks.items()}

    def _remember(self, found: dict[str, dict[str, float]]) -> None:
        """Keep each task's latest numbers, for the table at the end."""
        for kind, tasks in found.items():
            self._latest.setdefault(kind, {}).update(tasks)
