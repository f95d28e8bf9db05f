"""The mixin that makes a LightningModule uncertainty-weighted. It imports no Lightning and overrides no hook.

Long, but one file: it is the list of what users call, each with its contract; the work is in the rooms below.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_uncertainty._step import (
    BETAS,
    FACTOR,
    FitState,
    Skip,
    StepWindow,
    TaskLossValue,
    all_sound,
    check_class_names,
    check_graphs,
    check_losses,
    check_names,
    check_optimizers,
    check_rates,
    check_resumed,
    check_shards,
    clip_separately,
    graph_of,
    grouped,
    hearing,
    is_training,
    log_evaluation,
    log_metrics,
    own_prefixes,
    plain_checkpoint,
    restore_rates,
    running_trainer,
    split,
    stack_losses,
    tell_epoch,
    trainer_of,
    warn_of_length,
    warn_of_shares,
    warn_where_none_arrive,
    without,
)
from lightning_uncertainty._tensors import mean_losses, reads_values
from lightning_uncertainty.balancing.splitter import Splitter
from lightning_uncertainty.balancing.step import Step
from lightning_uncertainty.predictions.predicting import Predicting
from lightning_uncertainty.tasks import HeteroscedasticHead, Stage, TaskCorrections
from lightning_uncertainty.tasks.by_name import TaskHeads
from lightning_uncertainty.tasks.metrics import TaskMetrics
from lightning_uncertainty.tasks.stages import EVALUATION, STAGES
from lightning_uncertainty.tasks.task import Tasks, check_known, check_renamed, likelihoods_of, losses_of, specify
from lightning_uncertainty.weightings import FixedWeighting, Weighted, Weighting
from lightning_uncertainty.weightings.fixed import constants_of
from lightning_uncertainty.weightings.uncertainty import as_weighting

if TYPE_CHECKING:

    class _Host(nn.Module):
        """What the mixin uses of its LightningModule."""

        trainer: Any
        log: Any

else:
    _Host = object

__all__ = ["MultiTaskMixin"]

OnNonfinite = Literal["raise", "skip_step"]


class MultiTaskMixin(Predicting, _Host):
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

    task_heads: TaskHeads
    task_metrics: TaskMetrics
    task_splitter: Splitter
    _task_window: StepWindow
    _task_fit: FitState
    _task_skips = False
    skipped_steps = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Look whether a subclass leaves alone what it does not know of.

        Raises:
            TypeError: it has a method under the name of one that is called within.
        """
        super().__init_subclass__(**kwargs)
        check_class_names(cls)

    # -- set-up --------------------------------------------------------------------------------------------------------

    def register_tasks(
        self,
        tasks: Tasks,
        *,
        weighting: Weighting | None = None,
        renamed: Mapping[str, str] | None = None,
        on_nonfinite: OnNonfinite = "raise",
    ) -> None:
        """Name the tasks, once, in `__init__` after `super().__init__()`.

        Args:
            tasks: by name, a likelihood where you compute the loss yourself, a `Task` where it owns head and metrics.
            weighting: how losses become one scalar; `UncertaintyWeighting()` where None. The module has a copy of it,
                `self.task_weighting`, so that hyper-parameters that hold it build any number of modules.
            renamed: today's names by the names that tasks have in older checkpoints, `{"old": "new"}`: σ, its start and
                the head of the old name load as those of the new one, and such a run resumes.
            on_nonfinite: what `weigh` does in training where a loss is NaN or infinite. "raise" names the task.
                "skip_step" leaves everything as it was and counts the step in `skipped_steps`; to know, it reads one
                number from the device in every step.

        Raises:
            ValueError: a name of a task or metric cannot be used or is there twice, no such likelihood exists, the
                weighting has numbers for other tasks, `renamed` leads to no task, or from one that is there, or
                `on_nonfinite` is neither of the two.
            RuntimeError: tasks are registered already, or the LightningModule is not initialised.
            TypeError: something of the module's own stands under a name that is needed within.
        """
        if self._task_specs:
            raise RuntimeError(
                f"tasks should be registered once: found {', '.join(self._task_specs)} registered already; name them "
                "all in one call"
            )
        if on_nonfinite not in ("raise", "skip_step"):
            raise ValueError(f"on_nonfinite should be 'raise' or 'skip_step': found {on_nonfinite!r}")
        specified = specify(tasks)
        renamed = check_renamed({} if renamed is None else renamed, specified)
        given = as_weighting(weighting)
        weighting = copy.deepcopy(given).bind(likelihoods_of(specified))
        weighting.rename(renamed)
        try:
            self.task_weighting = weighting
        except AttributeError as error:
            raise RuntimeError(
                "call super().__init__() before register_tasks: the module is not initialised"
            ) from error
        check_names(self)
        self.task_heads = TaskHeads({name: task.head for name, task in specified.items() if task.head is not None})
        self.task_heads.renamed = renamed
        self.task_metrics = TaskMetrics(specified, weighting.powers())
        self.task_calibration = TaskCorrections(specified)
        self.task_calibration.rename(renamed)
        self.task_splitter = Splitter()
        self._task_window = StepWindow()
        self._task_fit = FitState()
        self._task_fit.given = ref(given)
        self._task_skips = on_nonfinite == "skip_step"
        self._set_mode(self.training)
        self._task_specs = {name: replace(task, head=None, metrics=None) for name, task in specified.items()}

    def parameter_groups(
        self,
        lr: float,
        *,
        weight_decay: float = 0.0,
        log_variance_lr: float | None = None,
        groups: Iterable[Mapping[str, Any]] = (),
        **group: Any,
    ) -> list[dict[str, Any]]:
        """Return parameter groups for an optimizer: the network, then the log-variances.

        Log-variances are never decayed (that would pull σ towards its start), and have a learning rate of their own:
        under Adam `s` moves by at most about one learning rate a step, so at the network's it lags behind the loss.

        Their betas are (0.9, 0.99), unless you name others here, so that Adam and its kin forget a spike of a loss
        within some hundred steps. Where an optimizer has no betas, or not two, `check_setup` puts its own back before
        the first step of a fit; SGD and the like never look at them anyway.

        Args:
            lr: learning rate of the network.
            weight_decay: weight decay of the network.
            log_variance_lr: learning rate of the log-variances; 10 `lr` where None.
            groups: parts of the network with options of their own, `{"params": net.fusions.parameters(), "lr": 0.1}`;
                they come after the rest of it, with its options where they name none.
            group: further options of all groups.

        Raises:
            RuntimeError: no tasks are registered.
            ValueError: a parameter is in two of `groups`, or none of the network's; or a rate is no number.
        """
        self._require_tasks("parameter_groups")
        network, own = split(self.parameters(), list(self.task_weighting.parameters()))
        check_rates(lr=lr, weight_decay=weight_decay)
        check_rates(log_variance_lr=FACTOR if log_variance_lr is None else log_variance_lr)
        own_lr = FACTOR * lr if log_variance_lr is None else log_variance_lr
        options = {**group, "lr": lr, "weight_decay": weight_decay}
        of_own = {"betas": BETAS, **group, "lr": own_lr, "weight_decay": 0.0}
        return grouped(network, own, options, of_own, groups)

    def clip_separately(
        self, optimizer: Optimizer, gradient_clip_val: float | None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradients of the network and those of the log-variances each by a norm of their own.

        The Trainer's own clipping takes one norm over both, so that a network whose gradient is large shrinks the step
        of σ, and, under `memory=None`, a σ far from its optimum that of the network. To be called in
        `configure_gradient_clipping`, with what that is given.

        Args:
            optimizer: whose parameters' gradients are clipped, in place.
            gradient_clip_val: the highest norm or value; None or 0 clips nothing.
            gradient_clip_algorithm: "norm" (also where None) or "value".

        Raises:
            ValueError: there is no such algorithm.
            RuntimeError: no tasks are registered.

        Example:
            >>> from pytorch_lightning import LightningModule
            >>> class Net(MultiTaskMixin, LightningModule):
            ...     def configure_gradient_clipping(
            ...         self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
            ...     ):
            ...         self.clip_separately(optimizer, gradient_clip_val, gradient_clip_algorithm)
        """
        self._require_tasks("clip_separately")
        own = list(self.task_weighting.parameters())
        clip_separately(optimizer, own, gradient_clip_val, gradient_clip_algorithm)

    def check_setup(self) -> None:
        """Look for what would spoil training unseen; `UncertaintyMonitor` and the first `weigh` of every fit call it.

        Raises:
            RuntimeError: no tasks are registered; the log-variances are in no optimizer, in several, in LBFGS, or left
                out of FSDP2's shards; or those of a checkpoint do not fit these tasks.
            TypeError: something of the module's own stands under a name that is needed within.
        """
        self._require_tasks("check_setup")
        check_names(self)
        self.task_weighting.check_tasks()
        self._task_window.prepare(self.task_weighting.base_weight)
        running = running_trainer(self)
        self._task_fit.begin(self)
        self._set_mode(self.training if running is None else running.training)  # before the first step calls a head
        self.task_splitter.warned = False  # what is told once is told in every fit
        trainer = trainer_of(self)
        if trainer is None:
            return
        warn_of_length(self.task_weighting, trainer)
        network, own = split(self.parameters(), list(self.task_weighting.parameters()))
        check_shards(self, own)
        check_optimizers(network, own, trainer.optimizers, remembers=self.task_weighting.remembers)
        warn_where_none_arrive(trainer.optimizers, own, self._task_fit)
        restore_rates(trainer.callbacks, trainer.optimizers, own)
        if self.task_weighting.remapped:
            check_resumed(trainer.optimizers, [*own, *self.task_heads.parameters()])  # their order is that of the tasks

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
            stage: "train", "val", "test". None logs nothing and is what a running Trainer is doing; without one it is
                what the module's mode says. Else the mode does not matter: a module that trains in evaluation mode, to
                hold the statistics of normalisation still, is weighed as any.

        Returns:
            The weighted total, 0-dimensional, float32 or wider. In training with `on_nonfinite="skip_step"`, where a
            loss is NaN or infinite: a zero whose backward moves nothing. It may be logged and added to like any total:
            where a Trainer is, the optimizers' next step finds no gradient of what was added either.

        Raises:
            RuntimeError: no tasks are registered; or, in a fit's first step, no loss depends on what is trained.
            ValueError: a task is unknown or missing, or a loss is not a scalar, is negative (where the likelihood is
                not normalised), NaN or inf (on eager CPU, and with `on_nonfinite="skip_step"`, at once and before any
                state changes, elsewhere when `UncertaintyMonitor` logs).
        """
        self._require_tasks("weigh")
        if stage is not None and stage not in STAGES:
            raise ValueError(f"stage should be one of {', '.join(STAGES)}: found {stage!r}")
        self._tell(stage)
        weighting = self.task_weighting  # a module's children are looked for last
        sums, counts, labels = stack_losses(losses, self._task_specs, like=weighting.task_ids)
        if stage in EVALUATION:
            log_evaluation(self, stage, self._task_specs, sums, torch.ones_like(sums) if counts is None else counts)
            with torch.no_grad():
                return self._evaluated(sums, counts)
        if not weighting.learning:
            return self._evaluated(sums, counts)
        begins = not torch.compiler.is_compiling() and self._begins(losses, stage)
        self._task_fit.end_skip()
        means, present, labels = mean_losses(sums, counts, labels, over_ranks=True)
        values = means.detach()
        if (self._task_skips or reads_values(values)) and not all_sound(weighting, values):
            return self._refuse_or_skip(values)
        if weighting.needs_epoch:
            tell_epoch(self, weighting)
        weighted = self._weighted(means, present, labels)
        if begins and weighting.ranks_sizes:
            self._task_fit.shares = weighted.weights.detach(), present
            if reads_values(values):
                self._look_at_shares()
        self._task_window.add(values, present, weighting, weighted)
        if not self.task_splitter.records(weighting):
            return weighted.total
        total: Tensor = self._recorded(losses, means, weighted)
        return total

    def take_row(self, *, keep: bool = False) -> dict[str, dict[str, float]]:
        """Return what the training steps since the last row left, by log key and task; one copy to the host.

        `loss` is the mean over the steps where the task was present; `weight`, `sigma` and `sigma_gap` are those of its
        latest present step; `loss_share` is their `|w L|` over the sum of all. Compiled steps leave nothing before
        `check_setup` was called.

        Args:
            keep: whether these steps stay for the next call, which is a look at a row that is not over.
        """
        self._require_tasks("take_row")
        self._look_at_shares()
        self.task_weighting.settle()
        return self._task_window.take(self.task_weighting, keep)

    def drop_row(self) -> None:
        """Forget what the training steps left so far, as those of an earlier fit that nobody watched."""
        self._task_window.empty()

    def latest_total(self) -> Tensor | None:
        """Return the weighted total of the latest batch, 0-dimensional; None before one, and where it was compiled."""
        return self._task_window.total

    def auxiliary_tasks(self) -> list[str]:
        """Return the names of the tasks that only help the others, and of constant terms."""
        constant = self.task_weighting.constant if self._task_specs else ()
        return [name for name, task in self._task_specs.items() if task.auxiliary or name in constant]

    def fixed_weighting(self) -> FixedWeighting:
        """Return the present effective weights as constants, to train or compare with; call it on all ranks alike.

        The gradient of the network is the same under both.

        Raises:
            RuntimeError: no tasks are registered.
            ValueError: the next batch decides a weight, as its task has not been trained yet, or the weights of this
                weighting follow each batch's losses.

        Example:
            >>> from pytorch_lightning import LightningModule
            >>> from lightning_uncertainty import UncertaintyWeighting
            >>> class Net(MultiTaskMixin, LightningModule):
            ...     def __init__(self, weighting):
            ...         super().__init__()
            ...         self.register_tasks({"depth": "gaussian", "kind": "categorical"}, weighting=weighting)
            >>> Net(UncertaintyWeighting(start=0.0)).fixed_weighting()
            FixedWeighting(weights={'depth': 0.5, 'kind': 1.0})
        """
        self._require_tasks("fixed_weighting")
        return constants_of(self.task_weighting)

    # -- for whom does not know of this package ------------------------------------------------------------------------

    def plain_state_dict(self) -> dict[str, Any]:
        """Return the state that the module would have without weighting, corrections and metrics of ours.

        A loader that wants the keys of the host alone takes it, strictly. Heads that tasks own are the network's.

        Raises:
            RuntimeError: no tasks are registered.

        Example:
            >>> from pytorch_lightning import LightningModule
            >>> class Net(MultiTaskMixin, LightningModule):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.depth = nn.Linear(4, 1)
            ...         self.register_tasks({"depth": "gaussian"})
            >>> list(Net().plain_state_dict())
            ['depth.weight', 'depth.bias']
        """
        self._require_tasks("plain_state_dict")
        return without(self.state_dict(), own_prefixes(self, MultiTaskMixin))

    def plain_checkpoint(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Return a checkpoint of Lightning's as the host alone would have written it; the given one stays as it is.

        Left out are our entries of the state, an average's too, the moments of the log-variances and their group in
        optimizers and schedulers, the histories of our callbacks, and hyper-parameters that are objects of ours. The
        host resumes from it. In `on_save_checkpoint`, `checkpoint.update(self.plain_checkpoint(checkpoint))` has every
        checkpoint of a fit written so; the fit itself can then load but not resume them.

        Args:
            checkpoint: what `torch.load` makes of a file, or `on_save_checkpoint` is given.

        Raises:
            RuntimeError: no tasks are registered.
            ValueError: an optimizer holds log-variances, and nothing tells which of its parameters they are.
        """
        self._require_tasks("plain_checkpoint")
        own = own_prefixes(self, MultiTaskMixin)
        return plain_checkpoint(checkpoint, own, self.named_parameters())

    def write_plain_checkpoint(self, source: str | Path, target: str | Path, *, weights_only: bool = True) -> None:
        """Write a checkpoint file anew as the host alone would have written it; see `plain_checkpoint`.

        Args:
            source: a file that the Trainer has written, of this module or one alike.
            target: where to write; may be the source.
            weights_only: as of `torch.load`; False where hyper-parameters of your own are in the file, which you trust.

        Raises:
            RuntimeError: no tasks are registered.
            ValueError: the source is a folder of shards, or as `plain_checkpoint`.
        """
        self._require_tasks("write_plain_checkpoint")
        if Path(source).is_dir():
            raise ValueError(
                f"a checkpoint to be written anew should be one file: found the folder {source}; make one of it with "
                "torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
            )
        checkpoint = torch.load(source, map_location="cpu", weights_only=weights_only)
        torch.save(self.plain_checkpoint(checkpoint), target)

    def sigma(self) -> dict[str, float]:
        """Return σ = e^{s/2} of the last training step by task; see the likelihood for its meaning and unit.

        NaN before a task's first labels; empty for a weighting without log-variances. Tasks whose likelihood is
        normalised are left out: their heads give a σ for each element.

        Raises:
            RuntimeError: no tasks are registered, or those of a checkpoint do not fit these.
        """
        self._require_tasks("sigma")
        self.task_weighting.check_tasks()
        log_variance = self.task_weighting.log_variance
        if log_variance is None:
            return {}
        sigma = dict(zip(self._task_specs, log_variance.div(2).exp().tolist(), strict=True))
        return {name: value for name, value in sigma.items() if name not in self.task_weighting.normalised}

    # -- tasks that own their heads ------------------------------------------------------------------------------------

    def task_outputs(self, features: Any) -> dict[str, Tensor]:
        """Return what each head makes of the shared features, by task.

        The output of a task without a head is that of its name in `features`, where these are a mapping: so a network
        that returns a prediction for every task, as those of `architectures` do, needs no heads.

        Raises:
            ValueError: no task has a head, and `features` has an output that belongs to no task; or heads are given
                outputs by task where they want features.
        """
        self._require_tasks("task_outputs")
        self._tell(None)
        made = features if isinstance(features, Mapping) else {}
        if not self.task_heads:
            check_known(made, self._task_specs)
        owners = tuple(self.task_heads)
        branches = self.task_splitter.split(self.task_weighting, features, owners) if owners else {}
        names = [name for name in self._task_specs if name in branches or name in made]
        if any(name in made for name in self._task_specs):  # features by task, or outputs
            return {name: self._output_of(name, branches) if name in branches else made[name] for name in names}
        return {name: self.task_heads[name](branches[name]) for name in names}

    def split_features(self, features: Any) -> dict[str, Any]:
        """Return the shared features for each task's head, where you call the heads yourself; once in a step.

        They are the features as they are, unless the tasks' gradients are to be told apart: `GradientBalancing` and
        `GradNorm` need every head to take its own. `task_outputs` and `task_step` do so.

        Args:
            features: a tensor, or tuples and mappings of tensors, as of a pyramid.

        Example:
            >>> from pytorch_lightning import LightningModule
            >>> from lightning_uncertainty.balancing import GradientBalancing
            >>> class Net(MultiTaskMixin, LightningModule):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.trunk, self.depth, self.height = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 1)
            ...         self.register_tasks({"depth": "gaussian", "height": "gaussian"}, weighting=GradientBalancing())
            ...
            ...     def training_step(self, batch, batch_idx):
            ...         features = self.split_features(self.trunk(batch["x"]))
            ...         return self.weigh({
            ...             "depth": (self.depth(features["depth"]) - batch["depth"]).square().mean(),
            ...             "height": (self.height(features["height"]) - batch["height"]).square().mean(),
            ...         })
        """
        self._require_tasks("split_features")
        self._tell(None)
        return self.task_splitter.split(self.task_weighting, features, tuple(self._task_specs))

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the tasks share, for `GradientBalancing(on="parameters")`.

        All but those of the tasks' own heads and of the weighting; override it where tasks own others, too. Heads that
        you call yourself are not known here, so it must be overridden then.

        Raises:
            RuntimeError: no task owns a head.
        """
        self._require_tasks("shared_parameters")
        if not self.task_heads:
            raise RuntimeError(
                "shared_parameters should tell what the tasks share: found no Task with a head; override it, "
                "as in `return list(self.trunk.parameters())` or `return self.net.shared_parameters()`"
            )
        own = [*self.task_heads.parameters(), *self.task_weighting.parameters()]
        return split(self.parameters(), own)[0]

    def task_losses(self, outputs: Mapping[str, Tensor], batch: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Return `(sum, count)` of each task's loss over its observed scalars; `outputs` may come from anywhere.

        Raises:
            ValueError: a task is unknown, the batch has no such labels, or they are not what the likelihood needs.
        """
        self._require_tasks("task_losses")
        check_known(outputs, self._task_specs)
        return losses_of(self._task_specs, outputs, batch)

    def task_step(self, features: Any, batch: Any, stage: Stage, *, train_metrics: bool = False) -> Tensor:
        """Run the heads, the losses and `weigh`; in evaluation, and in training if asked, update the metrics.

        `on_task_outputs` sees what the heads have made.

        Args:
            features: what the heads take, or a mapping of outputs, as for `task_outputs`. Heads that tasks own are run
                here; of outputs that are there already, `weigh(task_losses(outputs, batch), stage)` makes the total.
            batch: holds the labels.
            stage: "train", "val" or "test".
            train_metrics: whether to update and log metrics in training too.

        Raises:
            ValueError: as `task_outputs`, `task_losses` and `weigh`.
            RuntimeError: a task has no head, and no output among the features.
        """
        self._require_tasks("task_step")
        made = features if isinstance(features, Mapping) else {}
        headless = [name for name in self._task_specs if name not in self.task_heads and name not in made]
        if headless:
            raise RuntimeError(
                f"task_step needs a head for every task: found none for {', '.join(headless)}; give `Task(..., "
                "head=...)`, hand over a mapping that has the outputs by task, or compute the losses and call weigh"
            )
        self._tell(stage)  # `task_outputs` does so too, unless it is overridden
        self._task_fit.stage, self._task_fit.shown = stage, True
        try:
            outputs = self.task_outputs(features)
        finally:
            self._task_fit.stage = None
        losses = self.task_losses(outputs, batch)
        self.on_task_outputs(stage, outputs, batch)
        skipped = self.skipped_steps if train_metrics else 0
        with hearing(self.task_weighting, self._task_specs, outputs, batch):
            total = self.weigh(losses, stage=stage)
        if stage in EVALUATION or (train_metrics and self.skipped_steps == skipped):
            log_metrics(self, stage, self._task_specs, outputs, batch)
        return total

    def on_task_outputs(self, stage: Stage, outputs: Mapping[str, Tensor], batch: Any) -> None:
        """See what the heads have made of a batch, to be overridden: for pictures, or metrics of several tasks.

        `task_step` calls it in every step of every stage, once the labels have been found to fit the outputs, and
        before these are weighed: for each micro-batch under accumulation, and for a batch whose step is then skipped as
        its loss is not finite. `compare` trains a task alone with its own output only. A step that is compiled has this
        compiled with it.

        Args:
            stage: "train", "val" or "test", as `task_step` was given.
            outputs: by task, as heads make them (of classes logits). In training they have a graph: `detach` what you
                keep, and change nothing in place.
            batch: holds the labels, as `task_step` was given.

        Example:
            >>> from pytorch_lightning import LightningModule
            >>> from lightning_uncertainty import Task
            >>> class Net(MultiTaskMixin, LightningModule):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.register_tasks({"depth": Task("laplace", head=nn.Linear(4, 1))})
            ...
            ...     def training_step(self, batch, batch_idx):
            ...         return self.task_step(batch["x"], batch, "train")
            ...
            ...     def on_task_outputs(self, stage, outputs, batch):
            ...         print(stage, {task: list(output.shape) for task, output in outputs.items()})
            >>> _ = Net().training_step({"x": torch.ones(2, 4), "depth": torch.ones(2)}, 0)
            train {'depth': [2, 1]}
        """

    # -- within --------------------------------------------------------------------------------------------------------

    def _output_of(self, name: str, branches: Mapping[str, Any]) -> Tensor:
        """Return what a task's head makes of a mapping that has something under names of tasks.

        Raises:
            ValueError: the head cannot take it.
        """
        try:
            output: Tensor = self.task_heads[name](branches[name])
        except (TypeError, AttributeError) as error:
            raise ValueError(
                f"heads that tasks own should be given features: found a mapping by task, which the head of {name!r} "
                f"cannot take ({error}); hand over what the heads take, or, of outputs that are there already, "
                "call weigh(task_losses(outputs, batch), stage); beside an architecture, with_heads(net, heads) makes "
                "one network of both"
            ) from error
        return output

    def _tell(self, stage: Stage | None) -> None:
        """Have what learns, or counts, know by its mode whether this is a step of training, until the next call."""
        self._set_mode(is_training(self, stage or self._task_fit.stage))

    def _set_mode(self, training: bool) -> None:
        if self._task_fit.told is None:
            self._task_fit.told = tuple(told_parts(self))
        for part in self._task_fit.told:
            if part.training is not training:
                part.training = training

    def _evaluated(self, sums: Tensor, counts: Tensor | None) -> Tensor:
        total = self._weighted(*mean_losses(sums, counts, over_ranks=False)).total
        if not torch.compiler.is_compiling():
            self._task_window.total = total.detach()
        self._set_mode(self.training)  # for heads that are called before the next step tells
        return total

    @torch.compiler.disable
    def _recorded(self, losses: Mapping[str, TaskLossValue], means: Tensor, weighted: Weighted) -> Tensor:
        """Return the total whose backward shows the weighting the tasks' gradients."""
        needed = self.task_splitter.needs_parameters(self.task_weighting)  # a walk through a whole model is not free
        own = list(self.task_weighting.parameters()) if needed else []
        shared = self.shared_parameters() if needed else []
        others = split(self.parameters(), [*shared, *own])[0] if needed else []
        step = Step(
            total=weighted.total,
            losses=means,
            weights=weighted.weights,
            parts={name: part for name in self._task_specs if (part := graph_of(losses[name])) is not None},
            shared=[parameter for parameter in shared if parameter.requires_grad],
            others=[parameter for parameter in others if parameter.requires_grad],
            own=[parameter for parameter in own if parameter.requires_grad],
        )
        return self.task_splitter.record(self.task_weighting, step)

    def _weighted(self, means: Tensor, present: Tensor, labels: Tensor | None = None) -> Weighted:
        if labels is not None:
            self.task_weighting.count_labels(labels)
        weighted: Weighted = self.task_weighting(means, present)
        return weighted

    def _begins(self, losses: Mapping[str, TaskLossValue], stage: Stage | None) -> bool:
        """Return whether a fit begins with these losses; it is looked at then."""
        weighting, fit = self.task_weighting, self._task_fit
        if not (weighting.checked and fit.is_checked(self)):
            self.check_setup()
            self._tell(stage)
        if not fit.begins:
            return False
        if running_trainer(self) is not None:
            check_graphs(losses, split(self.parameters(), list(weighting.parameters()))[0])
        if not fit.shown and type(self).on_task_outputs is not MultiTaskMixin.on_task_outputs:
            warnings.warn(
                "on_task_outputs is called by task_step alone: found weigh called without it; call task_step, or what "
                "should see the outputs yourself",
                stacklevel=3,
            )
        fit.begins = False
        return True

    def _look_at_shares(self) -> None:
        """Look at the weights of a fit's first batch, if nobody has."""
        if self._task_fit.shares is not None:
            weights, present = self._task_fit.shares
            self._task_fit.shares = None
            warn_of_shares(self.task_weighting, self._task_specs, weights, present)

    def _refuse_or_skip(self, values: Tensor) -> Tensor:
        """Raise for an unsound loss: negative, NaN or inf; where steps are skipped, for one that is negative."""
        found = check_losses(self.task_weighting, values, allow_nonfinite=self._task_skips)
        return self._skip_batch(f"its loss is not finite: {found}", values.device)

    def _skip_batch(self, why: str, device: torch.device) -> Tensor:
        """Return a total that moves nothing, and count the step; warn once in a fit."""
        if not self._task_fit.warned:
            self._task_fit.warned = True
            warnings.warn(
                f"a training step is skipped, as {why}; skipped_steps counts this and others",
                stacklevel=4,
            )
        self.skipped_steps += 1
        self._task_fit.skip = Skip(self, trainer_of(self))
        return self._task_fit.skip.total(device)


def told_parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of a module that are told whether a step is one of training, but for those of others of us."""
    for child in module.children():
        if isinstance(child, Weighting | HeteroscedasticHead):
            yield child
        if not isinstance(child, MultiTaskMixin):
            yield from told_parts(child)
