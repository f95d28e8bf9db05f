"""One trial, run: what compare and search keep of a fit, whether it comes to its end or not."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_uncertainty.callbacks.base import find_labels
from lightning_uncertainty.trials._alone import train_alone
from lightning_uncertainty.trials._measures import directions
from lightning_uncertainty.trials._plan import Plan
from lightning_uncertainty.trials._setup import text_of
from lightning_uncertainty.trials._trial import ENDED_EARLY, FAILED, FINISHED, Trial
from lightning_uncertainty.trials._watch import TrialWatch
from lightning_uncertainty.trials.fit import Data, Maker, SetupError, fit, new_weighting

__all__ = ["EndedEarly", "run_trial"]


class EndedEarly(Exception):  # noqa: N818
    """Raised by a callback that ends a fit which lags behind."""


def run_trial(
    plan: Plan,
    attempt: int,
    maker: Maker,
    data: Data,
    options: Mapping[str, Any],
    callbacks: Sequence[Any],
    watch: TrialWatch | None = None,
    tested: bool = False,
) -> Trial:
    """Fit, test if so, and return what is to be kept: the numbers, or what was raised.

    Raises:
        SetupError: what would be wrong in every trial.
    """
    watch, state, error, told = watch or TrialWatch(), FINISHED, None, None
    known: Mapping[str, bool | None] = {}
    labels: Mapping[str, str] = {}
    test: Mapping[str, float] = {}

    def make() -> Any:
        module = maker(new_weighting(plan.name, plan.given), **plan.settings)
        if plan.task is not None:
            train_alone(module, plan.task)
        return module

    try:
        module, test = fit(make, data, plan.seed, options, [watch, *callbacks], tested)
        known, labels = directions(module), find_labels(module)
    except SetupError:
        raise
    except EndedEarly:
        state = ENDED_EARLY
    except Exception as raised:
        state, error, told = FAILED, _in_short(raised), traceback.format_exc()
    if state != FINISHED:  # what the error held of the model goes with it
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    settings = {name: text_of(value) for name, value in plan.settings.items()}
    found = watch.rows, known, watch.step_time, watch.peak_memory
    return Trial(
        plan.name, plan.task, plan.seed, plan.weighting, *found, state, error, told, attempt, labels, settings, test
    )


def _in_short(error: Exception) -> str:
    """Return in a few words what was raised.

    Example:
        >>> _in_short(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")), _in_short(KeyError("depth"))
        ('out of memory', "KeyError: 'depth'")
    """
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return "out of memory"
    if isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("out of memory", "not enough memory", "allocate memory")
    ):
        return "out of memory"
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}{f': {first[:200]}' if first else ''}"
