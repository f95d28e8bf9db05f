"""From the outputs of one pass, of many, or of many models, to what is predicted for every task and how surely."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_uncertainty.likelihoods import Likelihood, Prediction
from lightning_uncertainty.predictions._modes import switched
from lightning_uncertainty.predictions._outputs import by_task
from lightning_uncertainty.predictions.ensemble import DeepEnsemble
from lightning_uncertainty.predictions.sampling import sample

__all__ = ["Scales", "draw", "evaluate", "predict", "scales_of"]


class Scales(NamedTuple):
    """What stands beside outputs, by task: numbers of a model, or `[S]`, one for each of S models.

    Attributes:
        log_variances: NaN where a task has none.
        corrections: 1 where a task has none.
    """

    log_variances: dict[str, Tensor]
    corrections: dict[str, Tensor]


def scales_of(members: Sequence[Scales]) -> Scales:
    """Return the numbers of a model as they are, and those of several as vectors `[S]`."""
    first = members[0]
    if len(members) == 1:
        return first
    return Scales(
        {name: torch.stack([member.log_variances[name] for member in members]) for name in first.log_variances},
        {name: torch.stack([member.corrections[name] for member in members]) for name in first.corrections},
    )


def evaluate(module: nn.Module, forward: Callable[[Any], Mapping[str, Tensor]], inputs: Any) -> dict[str, Tensor]:
    """Return outputs `[B, ...]` by task of a pass in evaluation mode, without gradients.

    Raises:
        ValueError: the outputs are not by task.
    """
    with torch.no_grad(), switched(module, trains=lambda part: False):
        return dict(by_task(forward(inputs), "forward"))


def draw(
    module: nn.Module,
    inputs: Any,
    samples: int,
    forward: Callable[[Any], Mapping[str, Tensor]],
    ensemble: DeepEnsemble | None,
    options: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Return outputs `[S, B, ...]` by task; see `MultiTaskMixin.predict_tasks`."""
    if ensemble is not None:
        if samples != 1 or forward is not module or options:
            raise ValueError(
                "an ensemble should predict by its members alone: found samples, forward or options of sampling beside "
                "it; leave them out"
            )
        return ensemble.sample(inputs)
    if samples == 1:
        return {name: output.unsqueeze(0) for name, output in evaluate(module, forward, inputs).items()}
    return sample(forward, inputs, samples, module=module, **options)


def predict(
    outputs: Mapping[str, Tensor], likelihoods: Mapping[str, Likelihood], scales: Scales
) -> dict[str, Prediction]:
    """Return what outputs `[S, B, ...]` say, by task; warn where a task's σ is not known."""
    _warn_of_unknown(outputs, likelihoods, scales.log_variances)
    return {
        name: likelihoods[name].predicted(
            output, _beside(scales.log_variances[name], output), _beside(scales.corrections[name], output)
        )
        for name, output in outputs.items()
    }


def _beside(numbers: Tensor, outputs: Tensor) -> Tensor:
    """Return a number as it is, and numbers `[S]` as `[S, 1, ...]`, with the dimensions of outputs `[S, B, ...]`."""
    return numbers.reshape(-1, *[1] * (outputs.dim() - 1)) if numbers.dim() else numbers


def _warn_of_unknown(
    outputs: Mapping[str, Tensor], likelihoods: Mapping[str, Likelihood], log_variances: Mapping[str, Tensor]
) -> None:
    needed = [name for name in outputs if likelihoods[name].needs_sigma]
    if not needed:
        return
    known = torch.stack([~log_variances[name].isnan().any() for name in needed]).tolist()
    unknown = [name for name, there in zip(needed, known, strict=True) if not there]
    if unknown:
        warnings.warn(
            f"the aleatoric uncertainty of {', '.join(unknown)} is NaN, as no σ is known: train with a weighting that "
            "has log-variances, such as UncertaintyWeighting, or give the task a HeteroscedasticHead",
            stacklevel=4,
        )
