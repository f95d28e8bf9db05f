"""The mixin that makes a LightningModule uncertainty-weighted. It imports no Lightning and overrides no hook."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_uncertainty.global_batch import mean_losses
from lightning_uncertainty.likelihoods import Likelihood, as_likelihood, reads_values
from lightning_uncertainty.precision import Float32Module, promote
from lightning_uncertainty.step_window import StepWindow, unsound_loss
from lightning_uncertainty.tasks import EVALUATION, STAGES, Stage, Task, Tasks, check_renamed, metrics_of, specify
from lightning_uncertainty.weightings import UncertaintyWeighting, Weighted, Weighting

if TYPE_CHECKING:

    class _Host(nn.Module):
        """What the mixin uses of its LightningModule."""

        trainer: Any
        log: Any

else:
    _Host = object

__all__ = ["MultiTaskMixin"]

TaskLossValue = Tensor | tuple[Tensor, Tensor | float] | None


class _TaskHeads(nn.ModuleDict):
    """Heads by task, which load from checkpoints that know a task by an older name."""

    renamed: Mapping[str, str] = {}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for old, new in self.renamed.items():
            for key in [key for key in state_dict if key.startswith(f"{prefix}{old}.")]:
                state_dict[f"{prefix}{new}.{key.removeprefix(f'{prefix}{old}.')}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


class _TaskMetrics(Float32Module, nn.ModuleDict):
    """Metrics by log key."""


class MultiTaskMixin(_Host):
    """Uncertainty weighting for any LightningModule; stands before or after it in the bases.

    Three calls make a model uncertainty-weighted: `register_tasks` in `__init__`, `weigh` (or `task_step`) in the
    steps, and `parameter_groups` in `configure_optimizers`. There is no `__init__` and no hook to forget.

    Example:
        >>> from pytorch_lightning import LightningModule
        >>> class Net(MultiTaskMixin, LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.depth, self.count = nn.Linear(4, 1), nn.Linear(4, 1)
        ...         self.register_tasks({"depth": "laplace", "count": "gaussian"})
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         x, depth, count = batch
        ...         return self.weigh({
        ...             "depth": (self.depth(x) - depth).abs().mean(),
        ...             "count": (self.count(x) - count).square().mean(),
        ...         })
        ...
        ...     def configure_optimizers(self):
        ...         return torch.optim.AdamW(self.parameter_groups(lr=1e-3))
        >>> net = Net()
        >>> net.training_step((torch.ones(2, 4), torch.ones(2, 1), torch.ones(2, 1)), 0).dim()
        0
        >>> sorted(net.sigma())
        ['count', 'depth']
    """

    task_weighting: Weighting
    task_heads: nn.ModuleDict
    task_metrics: nn.ModuleDict
    _tasks: Mapping[str, Task] = {}
    _window: StepWindow
    _setup_checked = False

    # -- set-up --------------------------------------------------------------------------------------------------------

    def register_tasks(
        self, tasks: Tasks, *, weighting: Weighting | None = None, renamed: Mapping[str, str] | None = None
    ) -> None:
        """Name the tasks, once, in `__init__` after `super().__init__()`.

        Args:
            tasks: by name, a likelihood where you compute the loss yourself, a `Task` where it owns head and metrics.
            weighting: how losses become one scalar; `UncertaintyWeighting()` where None.
            renamed: today's names by the names that tasks have in older checkpoints, `{"old": "new"}`: σ, its start and
                the head of the old name load as those of the new one, and such a run resumes.

        Raises:
            ValueError: a name of a task or metric cannot be used or is there twice, no such likelihood exists, the
                weighting has numbers for other tasks, or `renamed` leads to no task, or from one that is there.
            RuntimeError: tasks are registered already, or the LightningModule is not initialised.
        """
        if self._tasks:
            raise RuntimeError(
                f"tasks should be registered once: found {', '.join(self._tasks)} registered already; name them all in "
                "one call"
            )
        specified = specify(tasks)
        likelihoods = {name: as_likelihood(task.likelihood) for name, task in specified.items()}
        renamed = check_renamed(renamed or {}, specified)
        weighting = (weighting or UncertaintyWeighting()).bind(likelihoods)
        weighting.renamed = renamed
        try:
            self.task_weighting = weighting
        except AttributeError as error:
            raise RuntimeError(
                "call super().__init__() before register_tasks: the module is not initialised"
            ) from error
        self.task_heads = _TaskHeads({name: task.head for name, task in specified.items() if task.head is not None})
        self.task_heads.renamed = renamed
        self.task_metrics = _TaskMetrics(metrics_of(specified, weighting.powers()))
        self._window = StepWindow()
        self._tasks = {name: replace(task, head=None, metrics=None) for name, task in specified.items()}

    def parameter_groups(
        self, lr: float, *, weight_decay: float = 0.0, log_variance_lr: float | None = None, **group: Any
    ) -> list[dict[str, Any]]:
        """Return parameter groups for an optimizer: the network, then the log-variances.

        Log-variances are never decayed (that would pull σ towards its start), and have a learning rate of their own:
        under Adam `s` moves by at most about one learning rate a step, so at the network's it lags behind the loss.

        Args:
            lr: learning rate of the network.
            weight_decay: weight decay of the network.
            log_variance_lr: learning rate of the log-variances; 10 `lr` where None.
            group: further options of both groups.

        Raises:
            RuntimeError: no tasks are registered.
        """
        self._require_tasks("parameter_groups")
        own = list(self.task_weighting.parameters())
        ids = {id(parameter) for parameter in own}
        network = [parameter for parameter in self.parameters() if id(parameter) not in ids]
        groups = [{**group, "params": network, "lr": lr, "weight_decay": weight_decay}]
        if own:
            own_lr = 10 * lr if log_variance_lr is None else log_variance_lr
            groups.append({**group, "params": own, "lr": own_lr, "weight_decay": 0.0, "name": "log_variances"})
        return groups

    def check_setup(self) -> None:
        """Look for what would spoil training unseen; `UncertaintyMonitor` and the first `weigh` of a fit call it.

        Raises:
            RuntimeError: no tasks are registered, the log-variances are in no optimizer or in several, or those of a
                checkpoint do not fit these tasks.
        """
        self._require_tasks("check_setup")
        self.task_weighting.check_tasks()
        self._setup_checked = True
        trainer = _trainer_of(self)
        optimizers = [] if trainer is None else list(trainer.optimizers)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        own = {id(parameter) for parameter in self.task_weighting.parameters()}
        known = {id(parameter) for group in groups for parameter in group["params"]}
        if not own or known.isdisjoint(id(parameter) for parameter in self.parameters()):
            return  # nothing to learn, no Trainer, or a strategy has wrapped the parameters
        holders = [group for group in groups if any(id(parameter) in own for parameter in group["params"])]
        if len(holders) != 1:
            raise RuntimeError(
                f"the log-variances should be in one optimizer: found them in {len(holders) or 'none'}, so "
                f"{'they would be stepped twice' if holders else 'σ would never move'}; build it from "
                "`self.parameters()` or, better, `self.parameter_groups(lr=...)`"
            )
        if not all(parameter.requires_grad for parameter in self.task_weighting.parameters()):
            warnings.warn(
                "the log-variances are frozen (requires_grad is False), so σ will not move: to train them call "
                "`self.task_weighting.requires_grad_(True)`",
                stacklevel=2,
            )
        decay = holders[0].get("weight_decay", 0.0)
        if decay:
            warnings.warn(
                f"the log-variances are under weight decay {decay:g}, which pulls σ back to where it started (at 0.1 "
                "from 10 to 6.9, measured with AdamW and start=0): give the optimizer `self.parameter_groups(lr=..., "
                f"weight_decay={decay:g})`, which leaves them out",
                stacklevel=2,
            )
        has_state = any(id(parameter) in own and state for o in optimizers for parameter, state in o.state.items())
        if self.task_weighting.remapped and has_state:
            raise RuntimeError(
                "a checkpoint of other tasks cannot be resumed, as its optimizer state is by position: load its "
                "weights (`load_from_checkpoint(..., strict=False)`) and fit anew, without ckpt_path"
            )

    # -- training ------------------------------------------------------------------------------------------------------

    def weigh(self, losses: Mapping[str, TaskLossValue], stage: Stage | None = None) -> Tensor:
        """Return the scalar to minimise, weighing the tasks' losses.

        In training, losses are those of the global batch on every rank, with one all-reduce. In evaluation nothing of
        the training state changes and there is no collective; with a stage, `<stage>/<task>/loss` and
        `<stage>/balanced_loss` are logged at the end of the epoch. The total itself may be negative and falls without
        any prediction changing: never monitor it.

        Args:
            losses: for every task a mean loss (0-dimensional), a pair `(sum, count)` as of `masked_sum`, or None where
                it has no labels in this batch. Means count alike on every rank; where label counts differ, use pairs.
            stage: "train", "val", "test"; None is training or evaluation by the module's mode, and logs nothing.

        Returns:
            The weighted total, 0-dimensional, float32 or wider.

        Raises:
            RuntimeError: no tasks are registered.
            ValueError: a task is unknown or missing, or a loss is not a scalar, is negative, NaN or inf (on eager CPU
                at once and before any state changes, elsewhere when `UncertaintyMonitor` logs).
        """
        self._require_tasks("weigh")
        if stage is not None and stage not in STAGES:
            raise ValueError(f"stage should be one of {', '.join(STAGES)}: found {stage!r}")
        sums, counts = self._vectors(losses)
        if stage in EVALUATION:
            self._log_evaluation(stage, sums, torch.ones_like(sums) if counts is None else counts)
            with torch.no_grad():
                return self._weighted(*mean_losses(sums, counts, over_ranks=False)).total
        if not self.task_weighting.learning:
            return self._weighted(*mean_losses(sums, counts, over_ranks=False)).total
        if not self._setup_checked and not torch.compiler.is_compiling():
            self.check_setup()
        means, present = mean_losses(sums, counts, over_ranks=True)
        values = means.detach()
        roots = values.sqrt()  # NaN where a loss is negative or NaN
        if reads_values(values.device) and not math.isfinite(roots.sum().item()):
            self._refuse(values)
        weighted = self._weighted(means, present)
        self._window.add(values, roots, present, weighted)
        return weighted.total

    def take_row(self) -> dict[str, dict[str, float]]:
        """Return what the training steps since the last call left, by log key and task; one copy to the host.

        `loss` is the mean over the steps where the task was present; `weight`, `weight_share`, `sigma` and `sigma_gap`
        are those of its latest present step.
        """
        self._require_tasks("take_row")
        self.task_weighting.settle()
        return self._window.take(self.task_weighting)

    def drop_row(self) -> None:
        """Forget what the training steps left so far, as those of an earlier fit that nobody watched."""
        self._window = StepWindow()

    def task_likelihoods(self) -> dict[str, Likelihood]:
        """Return the likelihoods by task."""
        return {name: as_likelihood(task.likelihood) for name, task in self._tasks.items()}

    def sigma(self) -> dict[str, float]:
        """Return σ = e^{s/2} of the last training step by task; see the likelihood for its meaning and unit.

        NaN before a task's first labels; empty for a weighting without log-variances.
        """
        self._require_tasks("sigma")
        log_variance = self.task_weighting.log_variance
        if log_variance is None:
            return {}
        return dict(zip(self._tasks, log_variance.div(2).exp().tolist(), strict=True))

    # -- tasks that own their heads ------------------------------------------------------------------------------------

    def task_outputs(self, features: Any) -> dict[str, Tensor]:
        """Return what each head makes of the shared features, by task."""
        self._require_tasks("task_outputs")
        return {name: head(features) for name, head in self.task_heads.items()}

    def task_losses(self, outputs: Mapping[str, Tensor], batch: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Return `(sum, count)` of each task's loss over its observed scalars; `outputs` may come from anywhere.

        Raises:
            ValueError: a task is unknown, the batch has no such labels, or they are not what the likelihood needs.
        """
        self._require_tasks("task_losses")
        self._known(outputs)
        losses = {}
        for name, output in outputs.items():
            target, mask = self._tasks[name].labels(name, batch)
            if target is None:  # the head stays in the graph, so that ranks with labels need not wait
                losses[name] = (promote(output).sum() * 0.0, output.new_zeros((), dtype=torch.float32))
                continue
            try:
                losses[name] = as_likelihood(self._tasks[name].likelihood).loss(output, target, mask)
            except ValueError as error:
                raise ValueError(f"task {name!r}: {error}") from error
        return losses

    def task_step(self, features: Any, batch: Any, stage: Stage, *, train_metrics: bool = False) -> Tensor:
        """Run the heads, the losses and `weigh`; in evaluation, and in training if asked, update the metrics.

        Args:
            features: what the heads take.
            batch: holds the labels.
            stage: "train", "val" or "test".
            train_metrics: whether to update and log metrics in training too.

        Raises:
            ValueError: as `task_losses` and `weigh`.
            RuntimeError: a task has no head.
        """
        self._require_tasks("task_step")
        headless = [name for name in self._tasks if name not in self.task_heads]
        if headless:
            raise RuntimeError(
                f"task_step needs a head for every task: found none for {', '.join(headless)}; give `Task(..., "
                "head=...)`, or compute the losses and call weigh"
            )
        outputs = self.task_outputs(features)
        losses = self.task_losses(outputs, batch)
        if stage in EVALUATION or train_metrics:
            self._update_metrics(stage, outputs, batch)
        return self.weigh(losses, stage=stage)

    # -- within --------------------------------------------------------------------------------------------------------

    def _require_tasks(self, caller: str) -> None:
        if not self._tasks:
            raise RuntimeError(
                f"{caller} needs tasks: call self.register_tasks({{...}}) in __init__, after super().__init__()"
            )

    def _known(self, names: Iterable[str]) -> None:
        unknown = [str(name) for name in names if name not in self._tasks]
        if unknown:
            raise ValueError(
                f"tasks should be among {', '.join(self._tasks)}: found {', '.join(unknown)}; register them all"
            )

    def _vectors(self, losses: Mapping[str, TaskLossValue]) -> tuple[Tensor, Tensor | None]:
        """Stack sums and counts `[T]` in the order of registration; no counts where all are means."""
        if losses.keys() != self._tasks.keys():
            self._known(losses)
            missing = ", ".join(name for name in self._tasks if name not in losses)
            raise ValueError(
                f"every task should have an entry: found none for {missing}; give None where it has no "
                "labels in this batch"
            )
        values = [losses[name] for name in self._tasks]
        if all(isinstance(value, Tensor) and not value.shape for value in values):
            return promote(torch.stack(values)), None  # type: ignore[arg-type]
        nothing = torch.zeros((), device=self.task_weighting.task_ids.device)
        pairs = [_pair(name, value, nothing) for name, value in zip(self._tasks, values, strict=True)]
        sums = promote(torch.stack([value for value, _ in pairs]))
        return sums, torch.stack([count.to(sums) for _, count in pairs])

    def _weighted(self, means: Tensor, present: Tensor) -> Weighted:
        weighted: Weighted = self.task_weighting(means, present)
        return weighted

    def _refuse(self, values: Tensor) -> NoReturn:
        name, found = next((n, v) for n, v in zip(self._tasks, values.tolist(), strict=True) if not 0 <= v < math.inf)
        raise ValueError(unsound_loss(name, f"{found:g}"))

    @torch.compiler.disable
    def _update_metrics(self, stage: str, outputs: Mapping[str, Tensor], batch: Any) -> None:
        with torch.no_grad():
            for name, output in outputs.items():
                prefix = f"{stage}/{name}/"
                keys = [key for key in self.task_metrics if key.startswith(prefix) and key != f"{prefix}loss"]
                if not keys:
                    continue
                target, mask = self._tasks[name].labels(name, batch)
                if target is None:
                    observed = output.new_zeros(0), output.new_zeros(0)
                else:
                    observed = as_likelihood(self._tasks[name].likelihood).observed(output, target, mask)
                for key in keys:
                    self._update_and_log(key, *observed)

    @torch.compiler.disable
    def _log_evaluation(self, stage: str, sums: Tensor, counts: Tensor) -> None:
        for index, name in enumerate(self._tasks):
            self._update_and_log(f"{stage}/{name}/loss", sums[index], counts[index])
        self._update_and_log(f"{stage}/balanced_loss", sums, counts)

    def _update_and_log(self, key: str, *values: Tensor) -> None:
        metric = self.task_metrics[key]
        assert isinstance(metric, Metric)
        if not metric.update_called:  # Lightning keeps the metric until the epoch ends: once an epoch is enough
            metric.reset()  # states made in the inference mode of `Trainer.validate` could not be updated in a fit
            with _all_dataloaders(self):
                self.log(key, metric, on_step=False, on_epoch=True, metric_attribute=f"task_metrics.{key}")
        metric.update(*values)


def _pair(name: str, value: TaskLossValue, nothing: Tensor) -> tuple[Tensor, Tensor]:
    """Return a loss as `(sum, count)`: a mean counts 1, None counts 0."""
    total, count = value if isinstance(value, tuple) and len(value) == 2 else (value, 1.0)
    if value is None:
        return nothing, nothing
    if isinstance(count, float | int):
        count = torch.full_like(nothing, count)
    if not all(isinstance(item, Tensor) and not item.shape for item in (total, count)):
        raise ValueError(
            f"a loss should be a 0-dimensional tensor or a pair (sum, count): found {_shape(value)} for task {name!r}; "
            "take its mean, or use masked_sum"
        )
    return total, count  # type: ignore[return-value]


@contextmanager
def _all_dataloaders(module: Any) -> Iterator[None]:
    """Have Lightning compute what is logged within when all dataloaders are through, under one key for all."""
    trainer = _trainer_of(module)
    results = None if trainer is None else trainer._results
    if results is None:
        yield
        return
    index, results.dataloader_idx = results.dataloader_idx, None
    try:
        yield
    finally:
        results.dataloader_idx = index


def _trainer_of(module: Any) -> Any | None:
    """The module's Trainer; None where it has none."""
    try:
        return module.trainer
    except RuntimeError:  # Lightning's way to say that there is none
        return None


def _shape(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_shape(item) for item in value)})"
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
