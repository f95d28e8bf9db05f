"""What keeps a weighting from doing in a fit what it was chosen for: told once, with what to change."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from lightning_uncertainty._step.trainers import epochs_of
from lightning_uncertainty.weightings import Weighting

__all__ = ["warn_of_length", "warn_of_shares"]

MOST = 0.99  # of the weight


def warn_of_length(weighting: Weighting, trainer: Any) -> None:
    """Warn of a fit that ends before the weighting, or one within it, begins to do what it is named for."""
    epochs = epochs_of(trainer)
    for part in weighting.modules():
        if isinstance(part, Weighting) and epochs <= part.first_epoch and not trainer.fast_dev_run:
            lower = ", or give a lower nadir_epoch" if getattr(part, "nadir_epoch", 0) else ""
            warnings.warn(
                f"a fit should be longer than the epochs in which {type(part).__name__} only gathers losses, and is "
                f"another method: found {epochs:.0f} of {part.first_epoch}; train for longer{lower}",
                stacklevel=4,
            )


def warn_of_shares(weighting: Weighting, tasks: Iterable[str], weights: Tensor, present: Tensor) -> None:
    """Warn of a weighting that compares losses as they are and gives all to one, in the first batch of a fit."""
    own = weights.detach() / weighting.base_weight.where(weighting.base_weight > 0, math.inf) * present
    shares = (own / own.sum()).tolist()
    task, share = max(zip(tasks, shares, strict=True), key=lambda pair: pair[1])
    if int(((weighting.base_weight > 0) & present).sum()) > 1 and share > MOST:
        warnings.warn(
            f"{type(weighting).__name__} should share its weight among tasks: found {share:.1%} for {task!r} in the "
            "first batch, as it compares losses by their sizes; bring them to one size, or give a higher temperature",
            stacklevel=4,
        )
