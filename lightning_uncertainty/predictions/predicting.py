"""What a module that has tasks predicts, for users to call; the base of the mixin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_uncertainty.likelihoods import Likelihood, Prediction
from lightning_uncertainty.predictions.ensemble import DeepEnsemble
from lightning_uncertainty.predictions.predict import Pools, Scales, draw
from lightning_uncertainty.predictions.sampling import Sampling
from lightning_uncertainty.tasks import Task, TaskCorrections
from lightning_uncertainty.tasks.task import likelihoods_of
from lightning_uncertainty.weightings import Weighting

if TYPE_CHECKING:
    _Host = nn.Module
else:
    _Host = object

__all__ = ["Predicting"]


class Predicting(_Host):
    """Predicts by its tasks."""

    task_weighting: Weighting
    task_calibration: TaskCorrections
    _task_specs: Mapping[str, Task] = {}

    def task_likelihoods(self) -> dict[str, Likelihood]:
        """Return the likelihoods by task."""
        return likelihoods_of(self._task_specs)

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
            options: `seed`, `max_rows` and `also` of `predictions.Sampling`. Samples are drawn and looked at one after
                the other: memory is that of one forward and a few maps, however many there are.

        Returns:
            By task: for regression the mean and standard deviations in units of the label, aleatoric and total NaN
            where there is no σ (with a warning); for classes probabilities and entropies in nats.

        Raises:
            ValueError: samples are below 1, the outputs are not by task, there is no dropout for several, an
                ensemble has other tasks, or it is given together with samples or `forward`.
            RuntimeError: no tasks are registered.

        Example:
            >>> from pytorch_lightning import LightningModule
            >>> from lightning_uncertainty import MultiTaskMixin, Task, UncertaintyWeighting
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
        sampling, pools = Sampling(**options), Pools(self.task_likelihoods())
        if ensemble is None:
            scales = self.task_scales()
            run = self if forward is None else forward
            draw(lambda outputs: pools.add(outputs, scales), self, inputs, samples, run, sampling)
            pools.warn_of_unknown()
            return pools.predictions()
        if samples != 1 or forward is not None or options:
            raise ValueError(
                "an ensemble should predict by its members alone: found samples, forward or options of sampling beside "
                "it; leave them out"
            )
        of_member = {id(member): self._alike(member).task_scales() for member in ensemble.members}
        ensemble.draw_each(
            lambda member, outputs: pools.add(
                {name: output.unsqueeze(0) for name, output in outputs.items()}, of_member[id(member)]
            ),
            inputs,
        )
        pools.warn_of_unknown()
        return pools.predictions()

    def task_scales(self) -> Scales:
        """Return what stands beside the outputs in predictions: log-variances, NaN where none, and corrections."""
        weighting = self.task_weighting
        own = weighting.log_variance
        if own is None:
            own = torch.full((len(self._task_specs),), torch.nan, device=weighting.task_ids.device)
        corrections = {name: self.task_calibration.of(name) for name in self._task_specs}
        return Scales(dict(zip(self._task_specs, own, strict=True)), corrections)

    def labels_of(self, task: str, batch: Any) -> tuple[Any, Any]:
        """Return a task's labels and mask in a batch; each may be None.

        Raises:
            ValueError: the batch has nothing there.
        """
        return self._task_specs[task].labels(task, batch)

    def _alike(self, member: nn.Module) -> Predicting:
        """Return a member of an ensemble.

        Raises:
            ValueError: it has other tasks than this module.
        """
        if not isinstance(member, Predicting) or member.task_likelihoods() != self.task_likelihoods():
            raise ValueError(
                f"members of an ensemble should be modules with the tasks {', '.join(self._task_specs)}: found "
                f"{type(member).__name__} with others; load checkpoints of one model"
            )
        return member

    def _require_tasks(self, caller: str) -> None:
        if not self._task_specs:
            raise RuntimeError(
                f"{caller} needs tasks: call self.register_tasks({{...}}) in __init__, after super().__init__()"
            )
