"""One number for each task that makes it as sure as it is right on held-out data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_uncertainty._show import render
from lightning_uncertainty.calibration._batches import Inputs, batches
from lightning_uncertainty.likelihoods import Likelihood
from lightning_uncertainty.mixin import MultiTaskMixin
from lightning_uncertainty.predictions.predict import evaluate

__all__ = ["Recalibration", "TaskRecalibration", "fitted_factor", "fitted_temperature", "recalibrate"]

LEAST, MOST = 0.05, 20.0  # temperatures
_LABELS = 1 << 14  # most of a batch and task that are looked at
_STEPS = 60  # of the golden section, which shrinks its interval to 62 % in each


@dataclass(frozen=True)
class TaskRecalibration:
    """What recalibration did to a task.

    Attributes:
        kind: "σ factor" or "temperature".
        before: the correction until now.
        after: the correction from now on.
        labels: how many labels tell.
        nll_before: mean negative log-likelihood of classes at `before`; None for regression.
        nll_after: the same at `after`.
    """

    kind: str
    before: float
    after: float
    labels: int
    nll_before: float | None = None
    nll_after: float | None = None


@dataclass(frozen=True)
class Recalibration:
    """What recalibration did, by task; `print` shows it as a table."""

    tasks: Mapping[str, TaskRecalibration]

    def __str__(self) -> str:
        lines = [
            [
                name,
                task.kind,
                f"{task.before:.4g}",
                f"{task.after:.4g}",
                "" if task.nll_before is None else f"{task.nll_before:.4g}",
                "" if task.nll_after is None else f"{task.nll_after:.4g}",
                str(task.labels),
            ]
            for name, task in self.tasks.items()
        ]
        return render(
            "Recalibration", ["task", "correction", "before", "after", "NLL before", "after", "labels"], lines
        )


def fitted_factor(z: Tensor, distribution: str) -> float:
    """Return the factor on σ that makes standardised residuals likeliest: `√mean z²`, or `√2 mean |z|` (laplace).

    Example:
        >>> fitted_factor(torch.tensor([3.0, -3.0]), "gaussian")
        3.0
    """
    z = z.double()
    return (math.sqrt(2) * z.abs().mean() if distribution == "laplace" else z.square().mean().sqrt()).item()


def fitted_temperature(nll: Callable[[float], float]) -> float:
    """Return the temperature from 0.05 to 20 with the least negative log-likelihood, by golden section in its log.

    The likelihood is log-concave in the inverse temperature, so that there is no other minimum. Guo et al., ICML 2017.

    Example:
        >>> round(fitted_temperature(lambda t: math.log(t / 3) ** 2), 4)
        3.0
    """
    shrink = (math.sqrt(5) - 1) / 2
    low, high = math.log(LEAST), math.log(MOST)
    left, right = high - shrink * (high - low), low + shrink * (high - low)
    at_left, at_right = nll(math.exp(left)), nll(math.exp(right))
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - shrink * (high - low)
            at_left = nll(math.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + shrink * (high - low)
            at_right = nll(math.exp(right))
    return math.exp((low + high) / 2)


def recalibrate(
    module: MultiTaskMixin,
    dataloader: Iterable[Any],
    *,
    inputs: Inputs = None,
    forward: Callable[[Any], Mapping[str, Tensor]] | None = None,
) -> Recalibration:
    """Make a trained model as sure as it is right on held-out data, without a change of its weights or predictions.

    Classes get the temperature that minimises the negative log-likelihood, one for a task, and regression the factor on
    σ that does: `√mean z²` of the standardised residuals, `√2 mean |z|` under a Laplace density. It is saved with
    the model, `predict_tasks` applies it, and `module.task_calibration.reset_parameters()` undoes it. Dropout is off
    meanwhile. A model that is trained further should be recalibrated anew. Of a batch with more than 16384 labels of a
    task, that many are drawn. In several processes call it in one, with all of the data.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, Section 4.2; for regression a simpler
    rule than that of Kuleshov et al., "Accurate Uncertainties for Deep Learning Using Calibrated Regression", ICML
    2018, who learn a whole curve.

    Args:
        module: trained; its `task_calibration` is set.
        dataloader: of data that it was not trained on.
        inputs: key of the batch, or function of it, that gives what `forward` takes; where None, what the backbone of a
            `MultiTaskModule` takes, else the batch.
        forward: from inputs to outputs by task; the module itself where None.

    Raises:
        ValueError: there is no label at all, or the outputs or labels are not what the tasks need.

    Example:
        >>> from pytorch_lightning import LightningModule
        >>> class Net(MultiTaskMixin, LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.register_tasks({"kind": "categorical"})
        ...
        ...     def forward(self, logits):
        ...         return {"kind": logits}
        >>> net = Net()
        >>> logits = torch.tensor([[4.0, 0.0]] * 4)  # sure to 98 %, and right in three of four
        >>> found = recalibrate(net, [{"x": logits, "kind": torch.tensor([0, 0, 0, 1])}], inputs="x")
        >>> round(found.tasks["kind"].after, 3), net.predict_tasks(logits)["kind"].mean[0]  # 4 / log 3
        (3.641, tensor([0.7500, 0.2500]))
    """
    likelihoods = module.task_likelihoods()
    held: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in likelihoods}
    for given, batch in batches(module, dataloader, inputs):
        for name, output in evaluate(module, module if forward is None else forward, given).items():
            target, mask = module.labels_of(name, batch)
            if target is not None:
                held[name].append(_sifted(likelihoods[name], output, target, mask, _log_variance(module, name)))
    seen = {name: pairs for name, pairs in held.items() if sum(len(labels) for _, labels in pairs)}
    if not seen:
        raise ValueError("recalibration should have labels: found none in the dataloader; give it held-out data")
    found = {name: _recalibrated(module, name, pairs) for name, pairs in seen.items()}
    done = {name: task for name, task in found.items() if task is not None}
    skipped = [name for name in likelihoods if name not in done]
    if skipped:
        warnings.warn(
            f"{', '.join(skipped)} cannot be recalibrated and keeps its correction: there is no label, or no σ (train "
            "with a weighting that has log-variances)",
            stacklevel=2,
        )
    module.task_calibration.correct({name: task.after for name, task in done.items()})
    return Recalibration(done)


def _log_variance(module: MultiTaskMixin, name: str) -> Tensor:
    return module.task_scales().log_variances[name]


def _sifted(
    likelihood: Likelihood, output: Tensor, target: Tensor, mask: Tensor | None, log_variance: Tensor
) -> tuple[Tensor, Tensor]:
    """Return standardised residuals and labels, or outputs `[N, ...]` and labels of classes, of observed labels."""
    if likelihood.predictive in ("classes", "event"):
        outputs, labels = likelihood.outputs_of(output, target, mask)
    else:
        uncorrected = likelihood.predicted(output.unsqueeze(0), log_variance, torch.ones_like(log_variance))
        prediction, labels = likelihood.paired(uncorrected, target, mask)
        outputs = (labels - prediction.mean) / prediction.aleatoric
    if len(labels) > _LABELS:
        drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(len(labels)))[:_LABELS]
        outputs, labels = outputs[drawn.to(outputs.device)], labels[drawn.to(labels.device)]
    return outputs.cpu(), labels.cpu()


def _recalibrated(module: MultiTaskMixin, name: str, pairs: list[tuple[Tensor, Tensor]]) -> TaskRecalibration | None:
    likelihood = module.task_likelihoods()[name]
    before = module.task_calibration.of(name).item()
    outputs, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    if likelihood.predictive not in ("classes", "event"):
        factor = fitted_factor(outputs, likelihood.predictive)
        return TaskRecalibration("σ factor", before, factor, len(labels)) if 0 < factor < math.inf else None

    def nll(temperature: float) -> float:
        unused, correction = outputs.new_zeros((), dtype=torch.float64), torch.tensor(temperature, dtype=torch.float64)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # where logits are noisy, every temperature sees the same noise
            probabilities = likelihood.predicted(outputs.double().unsqueeze(0), unused, correction).mean
        return _cross_entropy(probabilities, labels).item()

    after = fitted_temperature(nll)
    if not 1.01 * LEAST < after < 0.99 * MOST:
        warnings.warn(
            f"the temperature of {name} has no optimum between {LEAST:g} and {MOST:g} and stops at {after:.3g}: the "
            f"held-out labels are {'all predicted right' if after < 1 else 'not predicted better than by chance'}; "
            "give more of them",
            stacklevel=3,
        )
    return TaskRecalibration("temperature", before, after, len(labels), nll(before), nll(after))


def _cross_entropy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of -log p of class labels `[N]` for `[N, C]`, or of events between 0 and 1 for `[N]`."""
    tiny = torch.finfo(probabilities.dtype).tiny
    if probabilities.dim() > 1:
        return -probabilities.gather(1, labels[:, None]).clamp(min=tiny).log().mean()
    yes, no = probabilities.clamp(min=tiny).log(), (1 - probabilities).clamp(min=tiny).log()
    return -(labels * yes + (1 - labels) * no).mean()
