"""What makes a trial unfair to its weighting: told once, with what to change."""

from __future__ import annotations

import warnings
from typing import Any

from lightning_uncertainty.callbacks.base import AnyCallback
from lightning_uncertainty.weightings import SmoothTchebycheff, SoftOptimalUncertaintyWeighting

__all__ = ["FairnessWatch"]

MOST = 0.99


class FairnessWatch(AnyCallback):
    """Warns of a fit in which a weighting cannot do what it is compared for."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Look whether SmoothTchebycheff will have its nadir."""
        weighting, epochs = pl_module.task_weighting, trainer.max_epochs
        if not isinstance(weighting, SmoothTchebycheff) or weighting.nadir_epoch is None:
            return
        if epochs is not None and 0 <= epochs <= weighting.nadir_epoch + 1:
            warnings.warn(
                f"a fit should be longer than the epochs before SmoothTchebycheff's nadir, until which it is another "
                f"method: found max_epochs={epochs} and nadir_epoch={weighting.nadir_epoch}; give a lower nadir_epoch",
                stacklevel=2,
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look whether UW-SO gives all to one task in the first batch."""
        weighting = pl_module.task_weighting
        if batch_idx or trainer.current_epoch or not isinstance(weighting, SoftOptimalUncertaintyWeighting):
            return
        weights = pl_module.take_row(keep=True).get("weight", {})
        total = sum(weights.values())
        task = max(weights, key=lambda name: weights[name], default=None)
        if task is not None and len(weights) > 1 and weights[task] > MOST * total:
            warnings.warn(
                f"UW-SO should share its weight among tasks: found {weights[task] / total:.1%} for {task!r} in the "
                "first batch, as its loss is the smallest; bring losses to one size, or give a higher temperature",
                stacklevel=2,
            )
