"""The first steps of a fit: σ is held, or fixed weights give way to the weighting's own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from lightning_uncertainty._step import epochs_of
from lightning_uncertainty.callbacks.base import TaskCallback
from lightning_uncertainty.mixin import MultiTaskMixin

__all__ = ["UncertaintyWarmUp"]


class UncertaintyWarmUp(TaskCallback):
    r"""Hold σ, or blend from fixed weights, for the first epochs or steps of a fit.

    Without `blend_from`, the log-variances stay where they started (a given start, or a task's first labels), and with
    them every σ and every weight. The optimizer does not see them: it gathers no moments of theirs, decays nothing,
    and the Trainer's clipping does not count them. In manual optimization, clip in the module's
    `on_before_optimizer_step`, which comes after this callback's.

    With `blend_from`, training begins with fixed weights `w` and ends at the weighting's own total `J`:

    .. math::  (1 - \lambda) \sum_i w_i L_i + \lambda J,

    over the tasks present. λ is 0 in the first step and rises linearly to 1; weights that are logged are blended alike.
    σ is learnt meanwhile, from the second step on, its gradient scaled by λ. In evaluation λ is 1.

    The warm-up is a function of the Trainer's own counters: it is the same on every rank, a resumed run goes on within
    it, and checkpoints hold nothing of it. After it, or when the fit ends, is interrupted or fails, the weighting is as
    without this callback.

    Args:
        epochs: length in epochs; a blend moves within them where the number of their batches is known, else from one
            to the next.
        steps: length in optimizer steps, counted as `Trainer(max_steps=...)` does: each optimizer of a manual
            optimization counts.
        blend_from: fixed weights by task name, others 1, `{}` being the plain sum; None holds σ.
        module: path of the `MultiTaskMixin` in the module that the Trainer runs, as "net"; needed where it has several.

    Raises:
        ValueError: not one of `epochs` and `steps` is given, or it is below 1; (at the start of a fit) a name is no
            task, a weight is not finite or negative, there is nothing to hold, or the Trainer has another warm-up.
        TypeError: (at the start of a fit) the module is no `MultiTaskMixin`.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> hold = UncertaintyWarmUp(epochs=2)
        >>> blend = UncertaintyWarmUp(steps=1000, blend_from={"depth": 0.1})
        >>> trainer = Trainer(callbacks=[blend], accelerator="cpu", logger=False)
    """

    def __init__(
        self,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        blend_from: Mapping[str, float] | None = None,
        module: str | None = None,
    ) -> None:
        super().__init__(module)
        given = [length for length in (epochs, steps) if length is not None]
        if len(given) != 1 or given[0] < 1:
            raise ValueError(
                f"a warm-up should have a length, at least 1, in epochs or in steps: found epochs={epochs}, "
                f"steps={steps}; give one of them"
            )
        self.epochs, self.steps = epochs, steps
        self.blend_from = None if blend_from is None else dict(blend_from)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what cannot be warmed up."""
        net = self.find_tasks(trainer, pl_module)
        self.refuse_second(trainer, UncertaintyWarmUp, ": found several; keep one")
        weighting = net.task_weighting
        if self.blend_from is None and next(weighting.parameters(), None) is None:
            raise ValueError(
                f"to hold σ, a weighting should learn log-variances: found {weighting!r}, which learns nothing; give "
                "UncertaintyWarmUp(..., blend_from={}) to begin with the plain sum"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to blend; warn of a fit that ends before the warm-up does."""
        self.tasks_of(pl_module).task_weighting.blend_from(self.blend_from)
        length, fit = (self.epochs, epochs_of(trainer)) if self.steps is None else (self.steps, _steps_of(trainer))
        held = self.blend_from is None  # a blend may well take all of a fit
        if length is not None and (fit <= length if held else fit < length) and not trainer.fast_dev_run:
            unit = "epochs" if self.steps is None else "steps"
            what = "σ never moves" if held else "the weighting is never on its own"
            warnings.warn(
                f"a warm-up should be shorter than the fit: found {unit}={length} in a fit of {fit:.0f} {unit}, in "
                f"which {what}; give fewer, or train for longer",
                stacklevel=2,
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Move the blend; end it after the warm-up."""
        weighting = self.tasks_of(pl_module).task_weighting
        if weighting.blend is None:
            return
        share = self._progress(trainer, batch_idx)
        if share < 1:
            weighting.blend.share.fill_(share)
        else:
            weighting.blend_from(None)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Hold: what has no gradient is passed over by the clipping that follows, and by this optimizer.

        Another optimizer's gradients stay: a gradient scaler has not seen them yet, and would miss them.
        """
        net = self.tasks_of(pl_module)
        net._task_fit.held = self.blend_from is None and self._progress(trainer) < 1
        if not net._task_fit.held:
            return
        own = {id(parameter) for parameter in net.task_weighting.parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in own:
                    parameter.grad = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End a blend that the fit was too short for."""
        self.tasks_of(pl_module).task_weighting.blend_from(None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End a blend."""
        net = self.tasks_of(pl_module)
        if isinstance(net, MultiTaskMixin) and net.task_likelihoods():
            net.task_weighting.blend_from(None)

    def _progress(self, trainer: Any, batch_idx: int = 0) -> float:
        """Return how much of the warm-up is over, 1 and more when all of it is."""
        if self.steps is not None:
            return float(trainer.global_step / self.steps)
        assert self.epochs is not None
        first = batch_idx - batch_idx % trainer.accumulate_grad_batches  # batches of one step are blended alike
        return float((trainer.current_epoch + first / trainer.num_training_batches) / self.epochs)


def _steps_of(trainer: Any) -> float:
    """Return how many steps a fit takes; infinite where nothing says, as in manual optimization."""
    steps = trainer.estimated_stepping_batches
    known = trainer.lightning_module.automatic_optimization and steps >= 0  # -1: of a loader without a length
    return float(steps) if known else math.inf
