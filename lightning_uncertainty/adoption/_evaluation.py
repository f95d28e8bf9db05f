"""The losses of an adopted module's validation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_uncertainty.adoption._counts import counted, size_of
from lightning_uncertainty.adoption._options import Options
from lightning_uncertainty.adoption._watch import Watch

__all__ = ["Evaluation"]

_STAGE = "val"


class Evaluation:
    """Logs what steps of validation show, in the unit that training has.

    Attributes:
        host_weights: by task, those of the latest step of training, where losses are weighed with them.
    """

    def __init__(self, options: Options) -> None:
        self._options, self._parts = options, dict(options.validation)
        self._keys = {f"{_STAGE}/{name}" for name in ("balanced_loss", *(f"{task}/loss" for task in options.tasks))}
        self._begun = self._told = self._logs = False
        self.host_weights: dict[str, Tensor] = {}

    def note(self, weights: Mapping[str, Tensor]) -> None:
        """Take note of the host's weights in a step of training."""
        if self._parts and self._options.kept:
            self.host_weights.update({task: weight.detach() for task, weight in weights.items()})

    def check_key(self, key: str) -> None:
        """Look whether a key that the host logs is one of ours.

        Raises:
            RuntimeError: it is.
        """
        if self._parts and key in self._keys and not self._logs:
            raise RuntimeError(
                f"validation= of an adoption should log under keys that the host has left free: found that it logs "
                f"{key!r} itself; call the task otherwise, or leave validation= out"
            )

    def log(self, host: Any, watch: Watch, batch: Any) -> None:
        """Log the losses of a step of validation."""
        losses: dict[str, Any] = {
            task: torch.stack([sight.value for sight in seen]).mean().to(host.device)
            for task, seen in watch.sights.items()
        }
        never = [f"{task} ({part})" for task, part in self._parts.items() if not watch.reached(task)]
        if never and not self._begun:
            warnings.warn(
                "a part in validation should be logged or called there: found none for "
                f"{', '.join(never)} in the first step",
                stacklevel=3,
            )
        self._begun = True
        kept = losses.keys() & set(self._options.kept)
        unknown = kept - self.host_weights.keys()
        if unknown and not self._told and not getattr(host._trainer, "sanity_checking", False):
            self._told = True
            warnings.warn(
                "losses in validation should be in the unit of those in training, with the host's weights: found "
                f"none known of {', '.join(sorted(unknown))} before a step of training; left out until then",
                stacklevel=3,
            )
        for task in kept - unknown:
            losses[task] = losses[task] * self.host_weights[task].to(losses[task])
        losses = {task: loss for task, loss in losses.items() if task not in unknown}
        if not losses:
            return
        if self._options.count is None:
            size = size_of(batch)
            losses = {task: (loss * size, size) for task, loss in losses.items()}
        self._logs = True
        try:
            host.weigh(counted(losses, self._options, batch), stage=_STAGE)
        finally:
            self._logs = False
