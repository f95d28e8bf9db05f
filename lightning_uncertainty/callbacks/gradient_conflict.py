"""Looks at the tasks' gradients where they meet, every n steps: do they agree, and is a task made worse?

Long, but one file: hooks of one callback, each a few lines.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lightning_uncertainty._show import axes_or_new
from lightning_uncertainty.callbacks._heat_map import draw_heat_map, heat_map
from lightning_uncertainty.callbacks._history import History
from lightning_uncertainty.callbacks._similarity import SIMILARITIES, PairMeans, pair_row, shares_of_descent
from lightning_uncertainty.callbacks.base import TaskCallback, is_last_step, offer
from lightning_uncertainty.dashboards.charts import MOST_PAIRED
from lightning_uncertainty.dashboards.loggers import log_picture, log_row, refusable
from lightning_uncertainty.mixin import MultiTaskMixin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["GradientConflictMonitor"]

_set_stance = getattr(torch.compiler, "set_stance", None)  # torch 2.6


class GradientConflictMonitor(TaskCallback):
    r"""Log how the tasks' gradients agree in the shared features, every n steps and at the cost of those alone.

    With any weighting, :math:`g_i` is the gradient of task `i`'s weighted loss with respect to the features that
    `task_outputs` or `split_features` hand to the heads, over the global batch, and :math:`n_i` its norm:

    .. math::
        \cos_{ij} = \frac{\langle g_i, g_j \rangle}{n_i n_j}, \qquad
        \frac{2 n_i n_j}{n_i^2 + n_j^2}, \qquad
        \min_k \frac{\langle g_k, d \rangle}{|d|^2}, \quad d = \sum_j \alpha_j g_j.

    The cosine does not depend on the weights, magnitude similarity does. The last is how fast the task that fares worst
    descends along d, which goes on into the trunk: `1/T` where all fare alike, negative where this step makes a task
    worse, to first order and as far as features tell. α is that of `GradientBalancing`, 1 elsewhere. With
    `GradientBalancing(on="parameters")` gradients are those of the shared parameters, in the latest step that solved.

    Keys are `cosine/<a>/<b>` and `magnitude_similarity/<a>/<b>` for the pairs of at most 6 tasks, in the order of
    registration, and for any number `cosine/min`, `cosine/mean` (over pairs) and `first_order_change`. A task without
    labels or gradient in that step is left out; so is `first_order_change` where the gradients cancel, and the step
    where one is not finite. Values are in `trainer.callback_metrics` too. At the end of a fit wandb and TensorBoard get
    both similarities, averaged over the fit, as pictures `<kind>/heat_map`, where matplotlib is installed.

    A step that is watched costs about what a plain one does, and one copy to the host. Where batches accumulate, it is
    the one that completes the step. Of a fit that is too short for any, the last step is watched. Compiled models run
    it eagerly; torch 2.4 and 2.5, which have no word for that, break their graph at the features from then on.

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, Definitions 1 and 2.

    Args:
        every_n_steps: steps between two that are watched; the Trainer's `log_every_n_steps` where None.
        prefix: put before every key.
        pairs: whether to log pairs one by one; None does for at most 6 tasks.
        max_rows: bound of the history; when it is full every second row is dropped, so that it still spans the run.
        module: path of the `MultiTaskMixin` in the module that the Trainer runs, as "net"; needed where it has several.

    Attributes:
        history: the rows that were logged; `worst_task` names the task of `first_order_change`.

    Raises:
        ValueError: `every_n_steps` is below 1, `max_rows` below 2, or (at the start of a fit) the Trainer has another
            such monitor.
        TypeError: (at the start of a fit) the module is no `MultiTaskMixin`.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> monitor = GradientConflictMonitor(every_n_steps=100)
        >>> trainer = Trainer(callbacks=[monitor], accelerator="cpu", logger=False)
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        *,
        prefix: str = "",
        pairs: bool | None = None,
        max_rows: int = 10_000,
        module: str | None = None,
    ) -> None:
        super().__init__(module)
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps should be at least 1: found {every_n_steps}")
        if max_rows < 2:
            raise ValueError(f"max_rows should be at least 2: found {max_rows}")
        self.every_n_steps, self.prefix, self.pairs = every_n_steps, prefix, pairs
        self.history = History(max_rows)
        self._means = PairMeans(())
        self._due, self._skipped, self._warned = False, 0, False
        self._eager = ExitStack()

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Look whether there is something to watch."""
        self.find_tasks(trainer, pl_module)
        self.refuse_second(trainer, GradientConflictMonitor, ": found several; keep one")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the setup; begin anew unless the fit goes on from what was kept, and with the same tasks."""
        net = self.tasks_of(pl_module)
        net.check_setup()  # which a step that runs eagerly would find undone
        tasks = tuple(net.task_likelihoods())
        if not self.history.begin(trainer.global_step) or self._means.tasks != tasks:
            self._means = PairMeans(tasks)
        self._warned, self._told = False, set()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Have the step split the features if it is due."""
        loop, every = trainer.fit_loop.epoch_loop, self.every_n_steps or trainer.log_every_n_steps
        turn = every > 0 and (loop._batches_that_stepped + 1) % every == 0
        only_chance = every > 0 and not self.history.rows and is_last_step(trainer, batch_idx)
        self._due = (turn or only_chance) and len(self._means.tasks) > 1 and not loop._should_accumulate()
        net = self.tasks_of(pl_module)
        self._skipped = net.skipped_steps
        weighting, splitter = net.task_weighting, net.task_splitter
        by_parameters = splitter.needs_parameters(weighting)  # which splits nothing, and solves when it will
        splitter.watching = self._due or by_parameters
        eager = self._due and not splitter.balances(weighting)  # the other steps are other programs
        if eager and _set_stance is not None:
            self._eager.enter_context(_set_stance("force_eager"))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log what the step found."""
        self._eager.close()
        net = self.tasks_of(pl_module)
        splitter = net.task_splitter
        splitter.watching = False
        if not self._due:
            return
        watched, splitter.watched = splitter.watched, None
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # as Lightning's own rows
        if watched is not None:
            both = torch.cat([watched.gramian, watched.weights[None].to(watched.gramian)]).cpu().double()
            self._log(trainer, step, both[:-1], both[-1])
            return
        trained = (outputs or not pl_module.automatic_optimization) and net.skipped_steps == self._skipped
        if trained and not splitter.needs_parameters(net.task_weighting):
            self._warn(step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Draw the means for the loggers."""
        self.history.end(trainer.global_step)
        self._stop(self.tasks_of(pl_module))
        if trainer.barebones or not trainer.is_global_zero or not self._means or find_spec("matplotlib") is None:
            return
        for kind in SIMILARITIES:
            figure = heat_map(kind, self._means.mean(kind), self._means.tasks)
            for logger in trainer.loggers:
                with refusable(logger, "a picture", self._told):
                    log_picture(logger, f"{self.prefix}{kind}/heat_map", figure, self.history.rows[-1]["step"])

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop watching."""
        net = self.tasks_of(pl_module)
        if isinstance(net, MultiTaskMixin) and net.task_likelihoods():
            self.history.end(trainer.global_step)
            self._stop(net)

    def state_dict(self) -> dict[str, Any]:
        """Return the history and the means, builtins only."""
        return {"history": self.history.state_dict(), "means": self._means.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up where a checkpoint left them."""
        self.history.load_state_dict(state_dict["history"])
        self._means.load_state_dict(state_dict["means"])

    # -- reading -------------------------------------------------------------------------------------------------------

    def to_frame(self) -> DataFrame:
        """Return the history as a pandas frame: index `step`, one column for each log key.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return self.history.to_frame()

    def plot(
        self, kind: Literal["cosine", "magnitude_similarity"] = "cosine", ax: Axes | None = None
    ) -> tuple[Figure, Axes]:
        """Draw a heat map of all pairs, averaged over the steps that were watched.

        Args:
            kind: "cosine" or "magnitude_similarity".
            ax: axes to draw into; a new figure where None.

        Returns:
            The figure and its axes.

        Raises:
            ValueError: there is no such kind, or no step was watched yet.
            ModuleNotFoundError: matplotlib is not installed.
        """
        if kind not in SIMILARITIES:
            raise ValueError(f"kind should be one of {', '.join(SIMILARITIES)}: found {kind!r}")
        if not self._means:
            raise ValueError(
                f"there is no {kind} to plot: found no step that was watched; fit with this callback, every_n_steps "
                "or log_every_n_steps above 0, and have the features split"
            )
        figure, ax = axes_or_new(ax)
        draw_heat_map(ax, kind, self._means.mean(kind), self._means.tasks)
        return figure, ax

    # -- within --------------------------------------------------------------------------------------------------------

    def _log(self, trainer: Any, step: int, gramian: Tensor, weights: Tensor) -> None:
        """Log what a step's Gramian `[T, T]` and the weights `[T]` of its gradients tell."""
        seen = gramian.diagonal() > 0
        if not gramian.isfinite().all() or seen.sum() < 2:
            return
        found = {kind: similarity(gramian) for kind, similarity in SIMILARITIES.items()}
        self._means.add(found)
        tasks, own = self._means.tasks, self.pairs
        each = own or (own is None and len(tasks) <= MOST_PAIRED)
        row = {f"{self.prefix}{key}": value for key, value in pair_row(found, seen, tasks, each).items()}
        shares = torch.where(seen, shares_of_descent(gramian, weights), torch.inf)
        worst = int(shares.argmin())
        names = {}
        if shares[worst].isfinite():
            row[f"{self.prefix}first_order_change"] = shares[worst].item()
            names = {f"{self.prefix}worst_task": self._means.tasks[worst]}
        self.history.append(step, {**row, **names})
        log_row(trainer.loggers, row, step, self._told)
        offer(trainer, row)

    def _warn(self, step: int) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "GradientConflictMonitor should see the shared features: found none that were split and have a "
                f"gradient in step {step}; use task_step or task_outputs, or give each head "
                "split_features(features)[task]; a module that was adopted splits none",
                stacklevel=2,
            )

    def _stop(self, net: Any) -> None:
        self._eager.close()
        splitter = net.task_splitter
        splitter.watching, splitter.watched = False, None
