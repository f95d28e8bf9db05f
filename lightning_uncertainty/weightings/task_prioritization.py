"""DTP: weights by how far a task's key performance indicator is from 1 (Guo et al., ECCV 2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_uncertainty._tensors import is_number, keep_for_backward, reads_values
from lightning_uncertainty.likelihoods import Likelihood
from lightning_uncertainty.weightings._base import Weighting
from lightning_uncertainty.weightings._kpi_sources import (
    LOG_PROBABILITY,
    Kpi,
    check_kpis,
    kpi_sources,
    outside,
    own_copy,
)
from lightning_uncertainty.weightings._named import check_names, named_vector
from lightning_uncertainty.weightings._weighted import Weighted

__all__ = ["DynamicTaskPrioritization"]

_LEAST, _MOST = 1e-3, 1 - 1e-6  # of a mean KPI: no weight beyond 6.9, none of 0


class DynamicTaskPrioritization(Weighting):
    r"""Give hard tasks the larger weight: a focal loss on a key performance indicator (KPI) of each task.

    .. math::  \sum_i b_i w_i L_i, \qquad w_i = -(1 - \bar\kappa_i)^{\gamma_i} \log \bar\kappa_i, \qquad
               \bar\kappa \leftarrow d\, \bar\kappa + (1 - d)\, \kappa,

    with the KPI `κ` of each step's global batch, between 0 and 1 and higher better, and its mean `κ̄`, which starts at
    the first value and is held constant in the gradient. A task at `κ̄` = 0.1 has 2.07 times its loss at γ = 1, one at
    0.9 only 0.011: this favours hard tasks where uncertainty weighting favours easy ones. Losses keep their units, so
    bring them to one size first.

    A KPI comes from

    - the loss, as `exp(-L)`, the mean probability of the right class: what cross-entropies have where nothing is given;
    - the loss, as `1 / (1 + L / reference)`, where a number is given: the loss at which the KPI is ½;
    - the loss, by a function of yours;
    - a torchmetrics metric, given the predictions and labels of each training batch by `task_step`. With several
      processes their values are averaged by their numbers of labels, in one more all-reduce of a step; a metric that is
      no mean over labels is then approximate;
    - you, who call `observe`, where "observed" is given.

    A KPI below 0.001 counts as 0.001, one above 0.999999 as that. A metric's NaN is no news.

    Source: Guo et al., "Dynamic Task Prioritization for Multitask Learning", ECCV 2018. It gives no decay. Its focal
    loss of examples is `Categorical(focal=...)` and `Bernoulli(focal=...)`.

    Args:
        kpis: where KPIs come from, by task name, or one for all tasks.
        gamma: `γ`, at least 0: a number for all tasks, or numbers by task name, others 1. 0 is `-log κ̄`.
        decay: `d` in [0, 1); 0 follows every batch.
        base_weights: see `Weighting`.

    Raises:
        ValueError: the decay is outside [0, 1); (when tasks are registered) a task has no KPI, a name is no task, a
            gamma is negative, or a reference is not positive, or of a task whose likelihood is normalised; (in
            training) a KPI is outside [0, 1], or was never observed: on eager CPU at once and before any state changes,
            elsewhere when `UncertaintyMonitor` logs.

    Example:
        >>> from lightning_uncertainty.likelihoods import Categorical, Gaussian
        >>> kpis = {"depth": 0.5}  # at an MSE of 0.5 the KPI is ½
        >>> weighting = DynamicTaskPrioritization(kpis).bind({"depth": Gaussian(), "kind": Categorical()})
        >>> losses = torch.tensor([0.5, 0.1], requires_grad=True)
        >>> weighting(losses, torch.tensor([True, True])).weights
        tensor([0.3466, 0.0095])
    """

    takes_normalised = True
    shortfall: Tensor  # 1 - κ̄, as it is this that should keep its digits where a task is nearly learnt
    started: Tensor
    reference: Tensor  # 0 where there is none
    gamma: Tensor
    listens: Tensor  # 1 where a KPI does not follow the loss
    measured: Tensor  # 1 where it is a metric's
    unsound: Tensor  # the first KPI outside [0, 1] since the last look, 0 where there was none
    missed: Tensor  # 1 where a task was weighed without any KPI

    def __init__(
        self,
        kpis: Mapping[str, Kpi] | Kpi | None = None,
        gamma: float | Mapping[str, float] = 1.0,
        decay: float = 0.9,
        base_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(base_weights, kpis=kpis, gamma=gamma, decay=decay)
        if not (is_number(decay) and 0 <= decay < 1):
            raise ValueError(f"decay should lie in [0, 1): found {decay!r}")
        self.decay = decay
        self._kpis, self._gamma = kpis, gamma
        self._metrics: dict[str, Metric] = {}
        self._functions: dict[int, Callable[[Tensor], Tensor]] = {}
        self._heard: Tensor | None = None

    # -- set-up --------------------------------------------------------------------------------------------------------

    def bind(self, tasks: Mapping[str, Likelihood]) -> DynamicTaskPrioritization:
        self._probable = [name for name, kind in tasks.items() if isinstance(kind, LOG_PROBABILITY)]
        return super().bind(tasks)

    def make_vectors(self) -> None:
        sources = kpi_sources(self._kpis, self.tasks, self._probable, self.normalised)
        gamma = self._gamma if isinstance(self._gamma, Mapping) else dict.fromkeys(self.tasks, self._gamma)
        self.add_constant("gamma", named_vector(gamma, self.tasks, 1.0, "gamma", minimum=0.0))
        listening = [isinstance(source, Metric | str) for source in sources.values()]
        self._metrics = {name: own_copy(source) for name, source in sources.items() if isinstance(source, Metric)}
        references = [float(source) if isinstance(source, float | int) else 0.0 for source in sources.values()]
        self._functions = {
            index: source
            for index, source in enumerate(sources.values())
            if callable(source) and not isinstance(source, Metric)
        }
        self.add_constant("reference", references)
        self.add_constant("listens", map(float, listening))
        self.add_constant("measured", (float(name in self._metrics) for name in self.tasks))
        self._watches = any(listening) or bool(self._functions)
        self.register_buffer("shortfall", self.vector())
        self.register_buffer("started", self.vector())  # 0 or 1, as booleans cannot be averaged
        self.register_buffer("unsound", self.vector(), persistent=False)
        self.register_buffer("missed", self.vector(), persistent=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.shortfall.fill_(1.0)
        for vector in (self.started, self.unsound, self.missed):
            vector.zero_()

    @property
    def kpi(self) -> Tensor:
        """Return `κ̄` `[T]`; 0 before a task's first."""
        return 1 - self.shortfall

    # -- KPIs ----------------------------------------------------------------------------------------------------------

    def kpi_metrics(self) -> dict[str, Metric]:
        return self._metrics

    @contextmanager
    def hearing(self, kpi: Tensor) -> Iterator[None]:
        self._heard = kpi
        try:
            yield
        finally:
            self._heard = None

    @torch.no_grad()
    def observe(self, kpi: Tensor | Mapping[str, Tensor | float]) -> None:
        """Let KPIs count from now on: `[T]`, NaN where there is no news, or by task name; the same on every rank.

        They may come from validation, too: not while Lightning checks the sanity of it (`trainer.sanity_checking`).

        Raises:
            ValueError: a name is no task, there is not one number for each task, a KPI is one that follows the loss, or
                it is outside [0, 1] (on another device than the CPU: when `UncertaintyMonitor` logs).
        """
        if isinstance(kpi, Mapping):
            kpi = self._by_name(kpi)
        if kpi.shape != self.started.shape:
            raise ValueError(f"KPIs should be one for each of {len(self.tasks)} tasks: found shape {list(kpi.shape)}")
        kpi = torch.where(self.listens > 0, kpi.to(self.started), torch.nan)
        news = ~kpi.isnan()
        self._take_note(torch.where(news & outside(kpi), kpi, 0.0), torch.zeros_like(news))
        self._count(1 - kpi, news)

    def _by_name(self, kpi: Mapping[str, Tensor | float]) -> Tensor:
        check_names(kpi, self.tasks, "KPIs")
        listens = dict(zip(self.tasks, self._constants["listens"], strict=True))
        follow = [name for name in kpi if not listens[name]]
        if follow:
            raise ValueError(
                f"KPIs to be observed should be given as 'observed' or as a metric: found {', '.join(follow)}, which "
                "follow the loss; give kpis={'task': 'observed'}"
            )
        values = [torch.as_tensor(kpi.get(name, torch.nan), dtype=torch.float64) for name in self.tasks]
        return torch.stack([value.to(self.started.device) for value in values])

    def _count(self, shortfall: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the mean KPIs are short of 1 by with these, and which tasks have one; both are kept."""
        started = self.started > 0
        newest = torch.where(counted, shortfall, self.shortfall.to(shortfall))
        mean = torch.where(counted & started, torch.lerp(newest, self.shortfall.to(newest), self.decay), newest)
        started = started | counted
        self.shortfall.copy_(mean)
        self.started.copy_(started)
        return mean, started

    def _of_losses(self, losses: Tensor) -> Tensor:
        """Return what KPIs that follow from losses `[T]` are short of 1 by, NaN where they do not."""
        shortfall = torch.where(self.reference > 0, losses / (self.reference + losses), -torch.expm1(-losses))
        if self._functions:
            parts = list(shortfall.unbind())
            for index, function in self._functions.items():
                parts[index] = 1 - torch.as_tensor(function(losses[index])).to(shortfall)
            shortfall = torch.stack(parts)
        return torch.where(self.listens > 0, torch.nan, shortfall)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def weigh(self, losses: Tensor, present: Tensor) -> Weighted:
        counted = present & (self.base_weight > 0)
        shortfall = self._of_losses(losses.detach())
        if self.learning:
            if self._heard is not None:
                shortfall = torch.where(self.listens > 0, 1 - self._heard.to(shortfall), shortfall)
            if self._watches:
                self._watch(1 - shortfall, counted)
            mean, started = self._count(shortfall, counted & ~shortfall.isnan())
        else:  # tasks that were never trained have the KPI of this batch
            mean = torch.where(self.started > 0, self.shortfall, shortfall)
            started = ~mean.isnan()
        mean = mean.clamp(1 - _MOST, 1 - _LEAST)
        weights = torch.where(started, mean**self.gamma * -torch.log1p(-mean), 1.0)
        weights = keep_for_backward(self.base_weight * counted * weights)
        return Weighted((weights * losses).sum(), weights, None)

    def _watch(self, kpi: Tensor, counted: Tensor) -> None:
        """Look for KPIs outside [0, 1], and for tasks that never had one."""
        listens, nothing = self.listens > 0, kpi.isnan()
        missed = counted & listens & nothing & (self.started == 0)
        if self._heard is not None:  # a metric may have no value for a batch
            missed = missed & (self.measured == 0)
        self._take_note(torch.where(counted & outside(kpi) & ~(listens & nothing), kpi, 0.0), missed)

    def _take_note(self, unsound: Tensor, missed: Tensor) -> None:
        """Raise for what is wrong, see `check_kpis`, where it can be read; elsewhere keep it for `settle`."""
        if reads_values(unsound):
            check_kpis(self.tasks, unsound, missed)
            return
        with torch.no_grad():
            self.unsound.copy_(torch.where(self.unsound == 0, unsound, self.unsound))
            self.missed.copy_(missed | (self.missed > 0))

    def settle(self) -> None:
        if self._watches:
            check_kpis(self.tasks, self.unsound, self.missed)
