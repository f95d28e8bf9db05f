"""The mixin that makes a LightningModule uncertainty-weighted. It imports no Lightning and overrides no hook."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from lightning_uncertainty._step import (
    BETAS,
    StepWindow,
    TaskLossValue,
    all_dataloaders,
    check_known,
    check_optimizers,
    check_shards,
    check_skipping,
    clip_separately,
    graph_of,
    hearing,
    split,
    stack_losses,
    take_apart,
    tell_epoch,
    trainer_of,
    unsound_loss,
)
from lightning_uncertainty._tensors import mean_losses, promote, reads_values, world_size
from lightning_uncertainty.likelihoods import Likelihood, Prediction, as_likelihood
from lightning_uncertainty.predictions import DeepEnsemble
from lightning_uncertainty.predictions.predict import Scales, draw, predict, scales_of
from lightning_uncertainty.tasks import Stage, Task, TaskCorrections
from lightning_uncertainty.tasks.by_name import TaskHeads
from lightning_uncertainty.tasks.metrics import TaskMetrics
from lightning_uncertainty.tasks.stages import EVALUATION, STAGES
from lightning_uncertainty.tasks.task import Tasks, check_renamed, specify
from lightning_uncertainty.weightings import FixedWeighting, UncertaintyWeighting, Weighted, Weighting
from lightning_uncertainty.weightings._splitting import Step

if TYPE_CHECKING:

    class _Host(nn.Module):
        """What the mixin uses of its LightningModule."""

        trainer: Any
        log: Any

else:
    _Host = object

__all__ = ["MultiTaskMixin"]

OnNonfinite = Literal["raise", "skip_step"]


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
    task_heads: TaskHeads
    task_metrics: TaskMetrics
    task_calibration: TaskCorrections
    _tasks: Mapping[str, Task] = {}
    _window: StepWindow
    _setup_checked = False
    _skips = False
    skipped_steps = 0

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
            weighting: how losses become one scalar; `UncertaintyWeighting()` where None.
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
        """
        if self._tasks:
            raise RuntimeError(
                f"tasks should be registered once: found {', '.join(self._tasks)} registered already; name them all in "
                "one call"
            )
        if on_nonfinite not in ("raise", "skip_step"):
            raise ValueError(f"on_nonfinite should be 'raise' or 'skip_step': found {on_nonfinite!r}")
        specified = specify(tasks)
        likelihoods = {name: as_likelihood(task.likelihood) for name, task in specified.items()}
        renamed = check_renamed(renamed or {}, specified)
        weighting = (weighting or UncertaintyWeighting()).bind(likelihoods)
        weighting.rename(renamed)
        try:
            self.task_weighting = weighting
        except AttributeError as error:
            raise RuntimeError(
                "call super().__init__() before register_tasks: the module is not initialised"
            ) from error
        self.task_heads = TaskHeads({name: task.head for name, task in specified.items() if task.head is not None})
        self.task_heads.renamed = renamed
        self.task_metrics = TaskMetrics(specified, weighting.powers())
        self.task_calibration = TaskCorrections(specified)
        self.task_calibration.rename(renamed)
        self._window = StepWindow()
        self._skips = on_nonfinite == "skip_step"
        self._tasks = {name: replace(task, head=None, metrics=None) for name, task in specified.items()}

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
            ValueError: a parameter is in two of `groups`, or none of the network's.
        """
        self._require_tasks("parameter_groups")
        network, own = split(self.parameters(), list(self.task_weighting.parameters()))
        common = {**group, "lr": lr, "weight_decay": weight_decay}
        apart = [{**common, **given, "params": list(given["params"])} for given in groups]
        rest = take_apart(network, [given["params"] for given in apart])
        whole = [{**common, "params": rest}, *apart]
        if own:
            own_lr = 10 * lr if log_variance_lr is None else log_variance_lr
            options = {"betas": BETAS, **group}
            whole.append({**options, "params": own, "lr": own_lr, "weight_decay": 0.0, "name": "log_variances"})
        return whole

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
        """Look for what would spoil training unseen; `UncertaintyMonitor` and the first `weigh` of a fit call it.

        Raises:
            RuntimeError: no tasks are registered; the log-variances are in no optimizer, in several, in LBFGS, or left
                out of FSDP2's shards; those of a checkpoint do not fit these tasks; or steps cannot be skipped.
        """
        self._require_tasks("check_setup")
        self.task_weighting.check_tasks()
        self._window.prepare(self.task_weighting.base_weight)
        self._setup_checked = True
        trainer = trainer_of(self)
        if trainer is None:
            return
        network, own = split(self.parameters(), list(self.task_weighting.parameters()))
        check_shards(self, own)
        check_optimizers(network, own, trainer.optimizers, remembers=self.task_weighting.remembers)
        if self._skips:
            check_skipping(trainer)
        by_task = [*own, *self.task_heads.parameters()]  # their order is that of the tasks
        states = [optimizer.state.get(parameter) for optimizer in trainer.optimizers for parameter in by_task]
        if self.task_weighting.remapped and any(states):
            raise RuntimeError(
                "a checkpoint of other tasks cannot be resumed, as its optimizer state is by position: load its "
                "weights (`load_from_checkpoint(..., strict=False)`) and fit anew, without ckpt_path"
            )

    # -- training ------------------------------------------------------------------------------------------------------

    def weigh(self, losses: Mapping[str, TaskLossValue], stage: Stage | None = None) -> Tensor | None:
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
            The weighted total, 0-dimensional, float32 or wider. In training with `on_nonfinite="skip_step"`, where a
            loss is NaN or infinite: None, or, with several processes, for which Lightning refuses None, a zero whose
            backward reaches no parameter. `training_step` should return either: optimizers then find no gradient.

        Raises:
            RuntimeError: no tasks are registered.
            ValueError: a task is unknown or missing, or a loss is not a scalar, is negative (where the likelihood is
                not normalised), NaN or inf (on eager CPU, and with `on_nonfinite="skip_step"`, at once and before any
                state changes, elsewhere when `UncertaintyMonitor` logs).
        """
        self._require_tasks("weigh")
        if stage is not None and stage not in STAGES:
            raise ValueError(f"stage should be one of {', '.join(STAGES)}: found {stage!r}")
        sums, counts, labels = stack_losses(losses, self._tasks, self.task_weighting.task_ids.device)
        if stage in EVALUATION:
            self._log_evaluation(stage, sums, torch.ones_like(sums) if counts is None else counts)
            with torch.no_grad():
                return self._weighted(*mean_losses(sums, counts, over_ranks=False)).total
        if not self.task_weighting.learning:
            return self._weighted(*mean_losses(sums, counts, over_ranks=False)).total
        if not (self._setup_checked and self.task_weighting.checked) and not torch.compiler.is_compiling():
            self.check_setup()
        means, present, labels = mean_losses(sums, counts, labels, over_ranks=True)
        values = means.detach()
        roots = self.task_weighting.roots(values)
        if (self._skips or reads_values(values.device)) and not math.isfinite(roots.sum().item()):
            return self._refuse_or_skip(values)
        if self.task_weighting.needs_epoch:
            tell_epoch(self, self.task_weighting)
        weighted = self._weighted(means, present, labels)
        self._window.add(values, roots, present, weighted)
        if not self.task_weighting.splits and not self.task_weighting.needs_parameters:
            return weighted.total
        total: Tensor = self._recorded(losses, means, weighted)
        return total

    def take_row(self) -> dict[str, dict[str, float]]:
        """Return what the training steps since the last call left, by log key and task; one copy to the host.

        `loss` is the mean over the steps where the task was present; `weight`, `weight_share`, `sigma` and `sigma_gap`
        are those of its latest present step. Compiled steps leave nothing before `check_setup` was called.
        """
        self._require_tasks("take_row")
        self.task_weighting.settle()
        return self._window.take(self.task_weighting)

    def drop_row(self) -> None:
        """Forget what the training steps left so far, as those of an earlier fit that nobody watched."""
        self._window.empty()

    def task_likelihoods(self) -> dict[str, Likelihood]:
        """Return the likelihoods by task."""
        return {name: as_likelihood(task.likelihood) for name, task in self._tasks.items()}

    def auxiliary_tasks(self) -> list[str]:
        """Return the names of the tasks that only help the others."""
        return [name for name, task in self._tasks.items() if task.auxiliary]

    def fixed_weighting(self) -> FixedWeighting:
        """Return the present effective weights as constants, to train or compare with; call it on all ranks alike.

        The gradient of the network is the same under both.

        Raises:
            RuntimeError: no tasks are registered.
            ValueError: the next batch decides a weight, as its task has not been trained yet, or the weights of this
                weighting follow each batch's losses.

        Example:
            >>> from pytorch_lightning import LightningModule
            >>> class Net(MultiTaskMixin, LightningModule):
            ...     def __init__(self, weighting):
            ...         super().__init__()
            ...         self.register_tasks({"depth": "gaussian", "kind": "categorical"}, weighting=weighting)
            >>> Net(UncertaintyWeighting(start=0.0)).fixed_weighting()
            FixedWeighting(weights={'depth': 0.5, 'kind': 1.0})
        """
        self._require_tasks("fixed_weighting")
        losses = 1.0 + torch.arange(len(self._tasks), device=self.task_weighting.task_ids.device)
        present = torch.ones_like(losses, dtype=torch.bool)
        with torch.no_grad():  # which changes no state of the weighting
            weights = self._weighted(losses, present).weights
            others = self._weighted((losses + 1).square(), present).weights
        same = (weights == others) & self.task_weighting.closed_form
        following = [name for name, constant in zip(self._tasks, same.tolist(), strict=True) if not constant]
        if following:
            raise ValueError(
                "weights should be learnt before they are exported as constants: found that the next batch decides "
                f"those of {', '.join(following)}; train every task, or use a weighting whose weights do not follow "
                "each batch"
            )
        return FixedWeighting(dict(zip(self._tasks, weights.tolist(), strict=True)))

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
        sigma = dict(zip(self._tasks, log_variance.div(2).exp().tolist(), strict=True))
        return {name: value for name, value in sigma.items() if name not in self.task_weighting.normalised}

    # -- predicting ----------------------------------------------------------------------------------------------------

    def predict_tasks(
        self,
        inputs: Any,
        *,
        samples: int = 1,
        forward: Callable[[Any], Mapping[str, Tensor]] | None = None,
        ensemble: DeepEnsemble | None = None,
        **options: Any,
    ) -> dict[str, Prediction]:
        """Return every task's prediction with its aleatoric, epistemic and total uncertainty, without gradients.

        The aleatoric uncertainty is σ of the weighting, or that of a heteroscedastic head; where the weighting tells
        only ratios of σ, recalibrate it (`calibration`). The epistemic one is the disagreement of several passes with
        dropout, or of the members of an ensemble; it is 0 for one pass. `task_calibration` corrects both.

        Source: Kendall & Gal, "What Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?", NeurIPS
        2017.

        Args:
            inputs: what `forward` takes.
            samples: 1 is a pass in evaluation mode; more are passes with dropout, all else in evaluation mode.
            forward: from inputs to outputs by task; the module itself where None.
            ensemble: of modules with these tasks, to predict with in place of this one; each has a σ and a correction
                of its own, and the aleatoric variance is the mean of theirs.
            options: `seed`, `max_rows` and `also` of `predictions.sample`, for several samples.

        Returns:
            By task: for regression the mean and standard deviations in units of the label, aleatoric and total NaN
            where there is no σ (with a warning); for classes probabilities and entropies in nats.

        Raises:
            ValueError: samples are below 1, the outputs are not by task, there is no dropout for several, an
                ensemble has other tasks, or it is given together with samples or `forward`.
            RuntimeError: no tasks are registered.

        Example:
            >>> from pytorch_lightning import LightningModule
            >>> class Net(MultiTaskMixin, LightningModule):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.trunk = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5))
            ...         task = Task("gaussian", head=nn.Linear(8, 1))
            ...         self.register_tasks({"depth": task}, weighting=UncertaintyWeighting(start=0.0))
            ...
            ...     def forward(self, x):
            ...         return self.task_outputs(self.trunk(x))
            >>> net = Net()
            >>> net.weigh({"depth": torch.tensor(1.0)}).item()  # a step of training: σ is 1
            0.5
            >>> depth = net.predict_tasks(torch.ones(2, 4), samples=20, seed=0)["depth"]
            >>> depth.aleatoric.flatten().tolist(), bool((depth.total > 1).all())
            ([1.0, 1.0], True)
        """
        self._require_tasks("predict_tasks")
        members = [self] if ensemble is None else [self._alike(member) for member in ensemble.members]
        outputs = draw(self, inputs, samples, self if forward is None else forward, ensemble, options)
        check_known(outputs, self._tasks)
        return predict(outputs, self.task_likelihoods(), scales_of([member.task_scales() for member in members]))

    def task_scales(self) -> Scales:
        """Return what stands beside the outputs in predictions: log-variances, NaN where none, and corrections."""
        weighting = self.task_weighting
        own = weighting.log_variance
        if own is None:
            own = torch.full((len(self._tasks),), torch.nan, device=weighting.task_ids.device)
        corrections = {name: self.task_calibration.of(name) for name in self._tasks}
        return Scales(dict(zip(self._tasks, own, strict=True)), corrections)

    def labels_of(self, task: str, batch: Any) -> tuple[Any, Any]:
        """Return a task's labels and mask in a batch; each may be None.

        Raises:
            ValueError: the batch has nothing there.
        """
        return self._tasks[task].labels(task, batch)

    def _alike(self, member: nn.Module) -> MultiTaskMixin:
        """Return a member of an ensemble.

        Raises:
            ValueError: it has other tasks than this module.
        """
        if not isinstance(member, MultiTaskMixin) or member.task_likelihoods() != self.task_likelihoods():
            raise ValueError(
                f"members of an ensemble should be modules with the tasks {', '.join(self._tasks)}: found "
                f"{type(member).__name__} with others; load checkpoints of one model"
            )
        return member

    # -- tasks that own their heads ------------------------------------------------------------------------------------

    def task_outputs(self, features: Any) -> dict[str, Tensor]:
        """Return what each head makes of the shared features, by task.

        The output of a task without a head is that of its name in `features`, where these are a mapping: so a network
        that returns a prediction for every task, as those of `architectures` do, needs no heads.

        Raises:
            ValueError: no task has a head, and `features` has an output that belongs to no task.
        """
        self._require_tasks("task_outputs")
        made = features if isinstance(features, Mapping) else {}
        if not self.task_heads:
            check_known(made, self._tasks)
        branches = self.task_weighting.split(features, tuple(self.task_heads)) if self.task_heads else {}
        return {
            name: self.task_heads[name](branches[name]) if name in branches else made[name]
            for name in self._tasks
            if name in branches or name in made
        }

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
        return self.task_weighting.split(features, tuple(self._tasks))

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
        check_known(outputs, self._tasks)
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

    def task_step(self, features: Any, batch: Any, stage: Stage, *, train_metrics: bool = False) -> Tensor | None:
        """Run the heads, the losses and `weigh`; in evaluation, and in training if asked, update the metrics.

        Args:
            features: what the heads take, or a mapping of outputs, as for `task_outputs`.
            batch: holds the labels.
            stage: "train", "val" or "test".
            train_metrics: whether to update and log metrics in training too.

        Raises:
            ValueError: as `task_losses` and `weigh`.
            RuntimeError: a task has no head, and no output among the features.
        """
        self._require_tasks("task_step")
        made = features if isinstance(features, Mapping) else {}
        headless = [name for name in self._tasks if name not in self.task_heads and name not in made]
        if headless:
            raise RuntimeError(
                f"task_step needs a head for every task: found none for {', '.join(headless)}; give `Task(..., "
                "head=...)`, hand over a mapping that has the outputs by task, or compute the losses and call weigh"
            )
        outputs = self.task_outputs(features)
        losses = self.task_losses(outputs, batch)
        skipped = self.skipped_steps if train_metrics else 0
        with hearing(self.task_weighting, stage, self._tasks, outputs, batch):
            total = self.weigh(losses, stage=stage)
        if stage in EVALUATION or (train_metrics and self.skipped_steps == skipped):
            self._update_metrics(stage, outputs, batch)
        return total

    # -- within --------------------------------------------------------------------------------------------------------

    def _require_tasks(self, caller: str) -> None:
        if not self._tasks:
            raise RuntimeError(
                f"{caller} needs tasks: call self.register_tasks({{...}}) in __init__, after super().__init__()"
            )

    @torch.compiler.disable
    def _recorded(self, losses: Mapping[str, TaskLossValue], means: Tensor, weighted: Weighted) -> Tensor:
        """Return the total whose backward shows the weighting the tasks' gradients."""
        needed = self.task_weighting.needs_parameters  # a walk through a whole model is not free
        own = list(self.task_weighting.parameters()) if needed else []
        shared = self.shared_parameters() if needed else []
        others = split(self.parameters(), [*shared, *own])[0] if needed else []
        step = Step(
            total=weighted.total,
            losses=means,
            weights=weighted.weights,
            parts={name: part for name in self._tasks if (part := graph_of(losses[name])) is not None},
            shared=[parameter for parameter in shared if parameter.requires_grad],
            others=[parameter for parameter in others if parameter.requires_grad],
            own=[parameter for parameter in own if parameter.requires_grad],
        )
        return self.task_weighting.record(step)

    def _weighted(self, means: Tensor, present: Tensor, labels: Tensor | None = None) -> Weighted:
        if labels is not None:
            self.task_weighting.count_labels(labels)
        weighted: Weighted = self.task_weighting(means, present)
        return weighted

    def _refuse_or_skip(self, values: Tensor) -> Tensor | None:
        """Raise for an unsound loss: negative, NaN or inf; where steps are skipped, for one that is negative."""
        normalised = self.task_weighting.normalised
        found = {
            name: value
            for name, value in zip(self._tasks, values.tolist(), strict=True)
            if not math.isfinite(value) or (value < 0 and name not in normalised)
        }
        for name, value in found.items():
            if not self._skips or math.isfinite(value):
                raise ValueError(unsound_loss(name, f"{value:g}", name in normalised))
        check_skipping(trainer_of(self))
        if not self.skipped_steps:
            warnings.warn(
                f"a training step is skipped, as its loss is not finite: {found}; skipped_steps counts this and others",
                stacklevel=3,
            )
        self.skipped_steps += 1
        return torch.zeros((), device=values.device, requires_grad=True) if world_size() > 1 else None

    @torch.compiler.disable
    def _update_metrics(self, stage: str, outputs: Mapping[str, Tensor], batch: Any) -> None:
        with torch.no_grad():
            for name, output in outputs.items():
                keys = self.task_metrics.keys_of(stage, name)
                if not keys:
                    continue
                observed = self._tasks[name].observed(name, output, batch)
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
            with all_dataloaders(trainer_of(self)):
                self.log(key, metric, on_step=False, on_epoch=True, metric_attribute=f"task_metrics.{key}")
        metric.update(*values)
