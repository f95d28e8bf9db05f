"""A callback that adopts the module of its Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from lightning_uncertainty.adoption._adopted import Adopted
from lightning_uncertainty.adoption._host_shaped import spawns
from lightning_uncertainty.adoption.adopting import adopt
from lightning_uncertainty.adoption.parts import HostWeight, Part
from lightning_uncertainty.callbacks.base import AnyCallback
from lightning_uncertainty.likelihoods import Likelihood
from lightning_uncertainty.mixin import OnNonfinite
from lightning_uncertainty.tasks import Task
from lightning_uncertainty.weightings import Weighting

__all__ = ["AdoptLosses"]


class AdoptLosses(AnyCallback):
    """Adopt what the Trainer runs, before its optimizers are built, so that a project's own program needs no code.

    It may stand before or after `UncertaintyMonitor`. The module stays adopted when the fit is over; under a strategy
    that spawns processes it is so in these alone, and comes back as the host, without σ; this is told: `adopt` it
    before.

    Args:
        tasks: as for `adopt`, and so are all others.
        parts: how each task's loss is named.
        weighting: where None `AnalyticUncertaintyWeighting()`.
        rest: "plain", or a task.
        count: a function of the batch, or its dotted name.
        divisor: a function of the batch, or its dotted name.
        keep_host_weights: whether losses are weighed with the host's weights in them, as those of a task with the
            likelihood `constant` always are.
        may_be_absent: tasks that may be missing in the first step.
        follow: whether to find losses behind numbers.
        shared: paths of what the tasks share.
        beside: the path of a module whose optimizer steps the tasks' loss.
        global_losses: whether the host's losses are those of the global batch.
        validation: how each task's loss is named in validation.
        renamed: today's names by older ones.
        on_nonfinite: "raise" or "skip_step".

    Raises:
        TypeError: (in `setup`) as `adopt`.
        ValueError: (in `setup`) as `adopt`.
        RuntimeError: as `adopt`; or the callback came to a Trainer that was already fitting.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from lightning_uncertainty import UncertaintyMonitor
        >>> adoption = AdoptLosses(
        ...     {"depth": "laplace", "height": "gaussian"}, {"depth": "log:depth_loss", "height": "log:height_loss"}
        ... )
        >>> trainer = Trainer(callbacks=[adoption, UncertaintyMonitor()], accelerator="cpu", logger=False)
    """

    def __init__(
        self,
        tasks: Mapping[str, str | Likelihood | Task],
        parts: Mapping[str, str | Part] | HostWeight | str,
        weighting: Weighting | None = None,
        *,
        rest: str | None = None,
        count: Callable[[Any], Any] | str | None = None,
        divisor: Callable[[Any], Any] | str | None = None,
        keep_host_weights: bool = False,
        may_be_absent: str | list[str] | tuple[str, ...] = (),
        follow: bool = False,
        shared: str | list[str] | None = None,
        beside: str | None = None,
        global_losses: bool = False,
        validation: Mapping[str, str | Part] | None = None,
        renamed: Mapping[str, str] | None = None,
        on_nonfinite: OnNonfinite = "raise",
    ) -> None:
        super().__init__()
        self._tasks, self._parts = tasks, parts
        self._options: dict[str, Any] = {
            "weighting": weighting,
            "rest": rest,
            "count": count,
            "divisor": divisor,
            "keep_host_weights": keep_host_weights,
            "may_be_absent": may_be_absent,
            "follow": follow,
            "shared": shared,
            "beside": beside,
            "global_losses": global_losses,
            "validation": validation,
            "renamed": renamed,
            "on_nonfinite": on_nonfinite,
        }

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Adopt the module; one that is adopted so stays as it is."""
        if stage == "fit" and spawns(trainer) and trainer.is_global_zero and not isinstance(pl_module, Adopted):
            warnings.warn(
                "a module that is trained in spawned processes should be adopted before the fit: found one that is "
                "adopted in these alone, and comes back as its host, without its sigma; call adopt(module, ...) "
                "with these tasks and parts before trainer.fit",
                stacklevel=2,
            )
        adopt(pl_module, self._tasks, self._parts, **self._options)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Look whether there was a setup.

        Raises:
            RuntimeError: there was none.
        """
        if not isinstance(pl_module, Adopted):
            raise RuntimeError(
                "AdoptLosses should be among the Trainer's callbacks before a fit begins: found one that was added "
                "when the optimizers were there; give it to Trainer(callbacks=[...])"
            )
