"""From the outputs of one pass, of many, or of many models, to what is predicted for every task and how surely."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_uncertainty.likelihoods import Likelihood, Prediction
from lightning_uncertainty.likelihoods.pooling import Pool
from lightning_uncertainty.predictions._modes import switched
from lightning_uncertainty.predictions._outputs import by_task
from lightning_uncertainty.predictions.sampling import Sampling, draw_each, seeded
from lightning_uncertainty.tasks.task import check_known

__all__ = ["Pools", "Scales", "draw", "evaluate"]

_TOGETHER = 1 << 20  # numbers of outputs of which samples are looked at together, where looking is what costs


class Scales(NamedTuple):
    """Numbers of a model that stand beside its outputs, by task.

    Attributes:
        log_variances: NaN where a task has none.
        corrections: 1 where a task has none.
    """

    log_variances: dict[str, Tensor]
    corrections: dict[str, Tensor]


class Pools:
    """What samples say by task, looked at as they come; see `Pool`.

    Args:
        likelihoods: of all tasks.
    """

    def __init__(self, likelihoods: Mapping[str, Likelihood]) -> None:
        self._likelihoods = likelihoods
        self._pools: dict[str, Pool] = {}
        self._unknown: list[str] = []
        self._looked: Scales | None = None

    def add(self, outputs: Mapping[str, Tensor], scales: Scales) -> None:
        """Add outputs `[S, B, ...]` of a model with these scales.

        Raises:
            ValueError: a name is no task.
        """
        check_known(outputs, self._likelihoods)
        if self._looked is not scales:  # of every model once, as looking reads numbers from the device
            self._look_for_unknown(outputs, scales.log_variances)
            self._looked = scales
        with torch.no_grad():
            for name, output in outputs.items():
                likelihood, pool = self._likelihoods[name], self._pools.setdefault(name, Pool(self._likelihoods[name]))
                most = max(1, _TOGETHER * len(output) // max(1, output.numel()))
                for samples in torch.split(output, most):
                    said = likelihood.predicted(samples, scales.log_variances[name], scales.corrections[name])
                    pool.add(said, len(samples))

    def predictions(self) -> dict[str, Prediction]:
        """Return what all samples say together, by task."""
        return {name: pool.prediction() for name, pool in self._pools.items()}

    def warn_of_unknown(self) -> None:
        """Warn the caller of who calls this where a task's σ is not known."""
        if self._unknown:
            warnings.warn(
                f"the aleatoric uncertainty of {', '.join(self._unknown)} is NaN, as no σ is known: train with a "
                "weighting that has log-variances, such as UncertaintyWeighting, or give the task a "
                "HeteroscedasticHead",
                stacklevel=3,
            )

    def _look_for_unknown(self, outputs: Mapping[str, Tensor], log_variances: Mapping[str, Tensor]) -> None:
        needed = [name for name in outputs if self._likelihoods[name].needs_sigma]
        if needed and not self._unknown:
            unknown = torch.stack([log_variances[name].isnan() for name in needed]).tolist()
            self._unknown = [name for name, nowhere in zip(needed, unknown, strict=True) if nowhere]


def evaluate(module: nn.Module, forward: Callable[[Any], Mapping[str, Tensor]], inputs: Any) -> dict[str, Tensor]:
    """Return outputs `[B, ...]` by task of a pass in evaluation mode, without gradients.

    Raises:
        ValueError: the outputs are not by task.
    """
    with torch.no_grad(), switched(module, trains=lambda part: False):
        return dict(by_task(forward(inputs), "forward"))


def draw(
    take: Callable[[dict[str, Tensor]], None],
    module: nn.Module,
    inputs: Any,
    samples: int,
    forward: Callable[[Any], Mapping[str, Tensor]],
    sampling: Sampling,
) -> None:
    """Hand over outputs `[S, B, ...]` by task, some samples at a time; see `MultiTaskMixin.predict_tasks`."""
    if samples != 1:
        draw_each(take, forward, inputs, samples, module=module, sampling=sampling)
        return
    with seeded(sampling.seed, module, inputs):  # a likelihood may draw noise
        take({name: output.unsqueeze(0) for name, output in evaluate(module, forward, inputs).items()})
