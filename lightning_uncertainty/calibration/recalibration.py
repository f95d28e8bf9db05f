"""One number for each task that makes it as sure as it is right on held-out data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_uncertainty._show import render
from lightning_uncertainty._tensors import summed_over_ranks
from lightning_uncertainty.calibration._batches import Inputs, feeding, require_tasks
from lightning_uncertainty.calibration._fitting import LEAST, MOST, cross_entropy, fitted_factor, fitted_temperature
from lightning_uncertainty.likelihoods import Likelihood
from lightning_uncertainty.mixin import MultiTaskMixin
from lightning_uncertainty.predictions.predict import evaluate

__all__ = ["Recalibration", "TaskRecalibration", "recalibrate"]

_LABELS = 1 << 14  # most of a batch and task that are looked at


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
    """What recalibration did, by task; `print` shows it as a table.

    Attributes:
        tasks: with another correction than before.
        kept: why the others keep theirs.
    """

    tasks: Mapping[str, TaskRecalibration]
    kept: Mapping[str, str] = field(default_factory=dict)

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
        table = render(
            "Recalibration", ["task", "correction", "before", "after", "NLL before", "after", "labels"], lines
        )
        return "\n".join([table, *(f"{name} keeps its correction: {why}" for name, why in self.kept.items())])


def recalibrate(
    module: MultiTaskMixin,
    dataloader: Iterable[Any],
    *,
    inputs: Inputs = None,
    forward: Callable[[Any], Mapping[str, Tensor]] | None = None,
    datamodule: Any = None,
    min_labels: int = 30,
) -> Recalibration:
    """Make a trained model as sure as it is right on held-out data, without a change of its weights or predictions.

    Classes get the temperature that minimises the negative log-likelihood, one for a task, and regression the factor on
    σ that does: `√mean z²` of the standardised residuals, `√2 mean |z|` under a Laplace density. It is saved with
    the model, `predict_tasks` applies it, and `module.task_calibration.reset_parameters()` undoes it. Dropout is off
    meanwhile. A model that is trained further should be recalibrated anew. Of a batch with more than 16384 labels of a
    task, that many are drawn.

    A task with fewer labels than `min_labels`, or whose likelihood has no optimum, keeps its correction, and a warning
    tells why: the standard error of a factor from `N` labels is about `1 / √(2 N)`, 13 % for 30 of them.

    Batches come as the Trainer hands them to a step of validation: in its precision, through the hooks of the transfer
    of the DataModule and the module. In several processes call it in all of them, each with a share of the data: labels
    are those of all, and so is the correction.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, Section 4.2; for regression a simpler
    rule than that of Kuleshov et al., "Accurate Uncertainties for Deep Learning Using Calibrated Regression", ICML
    2018, who learn a whole curve.

    Args:
        module: trained; its `task_calibration` is set.
        dataloader: of data that it was not trained on.
        inputs: key of the batch, or function of it, that gives what `forward` takes; where None, what the backbone of a
            `MultiTaskModule` takes, else the batch.
        forward: from inputs to outputs by task; the module itself where None.
        datamodule: whose hooks of the transfer are called; that of the module's Trainer where None.
        min_labels: how many labels a task should have, over all processes.

    Raises:
        ValueError: there is no label at all, the outputs or labels are not what the tasks need, or `min_labels` is
            below 1.
        TypeError: the module is no `MultiTaskMixin`, or the data are no dataloader.
        RuntimeError: it has no tasks.

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
        >>> logits = torch.tensor([[4.0, 0.0]] * 40)  # sure to 98 %, and right in three of four
        >>> found = recalibrate(net, [{"x": logits, "kind": torch.tensor([0, 0, 0, 1] * 10)}], inputs="x")
        >>> round(found.tasks["kind"].after, 3), net.predict_tasks(logits)["kind"].mean[0]  # 4 / log 3
        (3.641, tensor([0.7500, 0.2500]))
    """
    require_tasks("recalibrate", module, "recalibrate(member, dataloader) for each of ensemble.members")
    if min_labels < 1:
        raise ValueError(f"min_labels should be at least 1: found {min_labels}; 30 are the least that tell much")
    likelihoods = {name: kind for name, kind in module.task_likelihoods().items() if not kind.constant}
    held: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in likelihoods}
    with feeding(module, datamodule) as feed:
        for given, batch in feed.batches(dataloader, inputs):
            with feed.step():
                outputs = evaluate(module, module if forward is None else forward, given)
                for name, output in ((name, outputs[name]) for name in held if name in outputs):
                    target, mask = module.labels_of(name, batch)
                    if target is not None:
                        held[name].append(_sifted(likelihoods[name], output, target, mask, _log_variance(module, name)))
    own = torch.tensor([sum(len(labels) for _, labels in pairs) for pairs in held.values()])
    counts = dict(zip(held, summed_over_ranks(own).tolist(), strict=True))
    if not any(counts.values()):
        raise ValueError("recalibration should have labels: found none in the dataloader; give it held-out data")
    found = {
        name: _recalibrated(module, name, pairs, counts[name])
        if counts[name] >= min_labels
        else f"it has {counts[name] or 'no'} label{'s' * (counts[name] != 1)} in the dataloader, and should have "
        f"min_labels={min_labels}"
        for name, pairs in held.items()
    }
    done = {name: task for name, task in found.items() if isinstance(task, TaskRecalibration)}
    kept = {name: why for name, why in found.items() if isinstance(why, str)}
    for name, why in kept.items():
        warnings.warn(f"task {name!r} keeps its correction: {why}", stacklevel=2)
    module.task_calibration.correct({name: task.after for name, task in done.items()})
    return Recalibration(done, kept)


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


def _recalibrated(
    module: MultiTaskMixin, name: str, pairs: list[tuple[Tensor, Tensor]], count: int
) -> TaskRecalibration | str:
    """Return what to do to a task with `count` labels in all processes, or why there is nothing to do."""
    likelihood = module.task_likelihoods()[name]
    before = module.task_calibration.of(name).item()

    def mean(of: Callable[[Tensor, Tensor], Tensor]) -> float:
        """Return the mean over the labels of all processes, whose sum is that of batches."""
        own = sum((of(outputs, labels).double().sum().item() for outputs, labels in pairs if len(labels)), 0.0)
        return summed_over_ranks(torch.tensor([own], dtype=torch.float64)).item() / count

    if likelihood.predictive not in ("classes", "event"):
        if likelihood.predictive == "mean" or (likelihood.needs_sigma and _log_variance(module, name).isnan()):
            return "no σ is known; train with a weighting that has log-variances"
        laplace = likelihood.predictive == "laplace"
        found = mean(lambda z, _: z.double().abs() if laplace else z.double().square())
        if 0 < found < math.inf:
            return TaskRecalibration("σ factor", before, fitted_factor(found, likelihood.predictive), count)
        if found == 0:
            return "its labels are all predicted without any error; give others"
        return "its predictions, or their σ, are NaN or infinite"

    def nll(temperature: float) -> float:
        unused, correction = torch.zeros((), dtype=torch.float64), torch.tensor(temperature, dtype=torch.float64)

        def of(outputs: Tensor, labels: Tensor) -> Tensor:
            probabilities = likelihood.predicted(outputs.double().unsqueeze(0), unused, correction).mean
            return cross_entropy(probabilities, labels)

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # where logits are noisy, every temperature sees the same noise
            return mean(of)

    after = fitted_temperature(nll)
    nll_before, nll_after = nll(before), nll(after)
    if not math.isfinite(nll_after):
        return "its probabilities are NaN"
    if 1.01 * LEAST < after < 0.99 * MOST:
        return TaskRecalibration("temperature", before, after, count, nll_before, nll_after)
    if math.isclose(nll(LEAST), nll(MOST), rel_tol=1e-9):
        return "no temperature is the likeliest, as its probabilities do not depend on it"
    bound, such = (
        (LEAST, "all are predicted right") if after < 1 else (MOST, "they are predicted no better than by chance")
    )
    return (
        f"no temperature between {LEAST:g} and {MOST:g} is the likeliest, as the likelihood of its labels rises up to "
        f"{bound:g}, which it does where {such}; give more of them"
    )
