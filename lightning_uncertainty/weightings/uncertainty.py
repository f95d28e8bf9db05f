"""Homoscedastic uncertainty weighting (Kendall, Gal & Cipolla, CVPR 2018)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_uncertainty.likelihoods import reads_values
from lightning_uncertainty.weightings._base import Weighted, Weighting, named_vector

__all__ = ["UncertaintyWeighting"]

_STEPS_BETWEEN_LOOKS = 50  # at `started` on devices where reading a value stalls the queue


class UncertaintyWeighting(Weighting):
    r"""Learn one log-variance `s = log σ²` per task, together with the network.

    .. math::  \sum_i b_i \left( c_i e^{-a_i s_i} L_i + r_i s_i \right)

    over the tasks present, with `c, a, r` of each task's likelihood and base weights `b`. A task without labels
    contributes neither term. `s = start + offset`, where the offset is the parameter: `start` is given, or the optimum
    of the task's first training batch, so that σ begins at the size of the residuals and weight decay, if any, pulls
    towards the data and not towards σ = 1.

    Source: Kendall, Gal & Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics", CVPR 2018, Eq. 7 and 10.

    Args:
        start: first log-variance: a number for all tasks, or numbers by task name; a task without a number, and None,
            start at the optimum of the first batch with labels (0.0 is σ = 1, the paper's choice).
        base_weights: see `Weighting`.

    Raises:
        ValueError: (when tasks are registered) a name is no task, or a number is not finite or negative.

    Example:
        >>> from lightning_uncertainty.likelihoods import Gaussian
        >>> weighting = UncertaintyWeighting(start=0.0).bind({"depth": Gaussian()})
        >>> weighted = weighting(torch.tensor([4.0]), torch.tensor([True]))
        >>> weighted.total.item(), weighted.weights.tolist(), weighted.log_variances.tolist()
        (2.0, [0.5], [0.0])
    """

    offset: nn.Parameter
    start: Tensor
    started: Tensor
    log_variance: Tensor

    def __init__(
        self, start: float | Mapping[str, float] | None = None, base_weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(base_weights)
        self._start = start
        self._settled = False
        self._steps = 0

    def make_vectors(self) -> None:
        given: Mapping[str, float] = {}
        if isinstance(self._start, Mapping):
            given = self._start
        elif self._start is not None:
            given = dict.fromkeys(self.tasks, self._start)
        self._first_start = named_vector(given, self.tasks, 0.0, "start")
        self._first_started = [name in given for name in self.tasks]
        self._switched_off = 0.0 in self._constants["base_weight"]
        self.register_buffer("start", self.vector())
        self.register_buffer("started", self.vector(dtype=torch.bool))
        self.register_buffer("log_variance", self.vector())
        self.offset = nn.Parameter(self.vector())

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.start.copy_(torch.tensor(self._first_start))
        self.started.copy_(torch.tensor(self._first_started))
        self.offset.zero_()
        self._settled = False

    def weigh(self, losses: Tensor, present: Tensor) -> Weighted:
        s = self.start + self.offset
        if not self._settled:
            s = self._start_from_data(s, losses, present)
        total, weights = self.balanced_objective(s, losses, present)
        log_variances = s.detach()
        if not self._settled or self._switched_off:
            log_variances = torch.where(self.started, log_variances, torch.nan)
        if not self._settled:
            self._look_for_stragglers()
        return Weighted(total, weights, log_variances)

    def _start_from_data(self, s: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """Return s with tasks that have not started at the optimum of this batch; in training they start there."""
        losses = losses.detach()
        started = self.started.clone()  # autograd keeps it, and the buffer is about to change
        new = self.usable(losses, present) & ~started
        optimum = self.optimum(losses)
        assert optimum is not None
        if self.learning:
            with torch.no_grad():
                self.start.copy_(torch.where(new, optimum - self.offset, self.start))
        # no gradient yet: at the optimum it is rounding error alone, which Adam would blow up to a whole step
        s = torch.where(started, s, torch.where(new, optimum.to(s.dtype), s.detach()))
        if self.learning:
            self.started.logical_or_(new)
        return s

    def _look_for_stragglers(self) -> None:
        """Settle when all tasks have started: on eager CPU at once, elsewhere every 50th step, compiled never."""
        if torch.compiler.is_compiling() or not self.learning:
            return
        self._steps += 1
        if reads_values(self.started.device) or self._steps % _STEPS_BETWEEN_LOOKS == 0:
            self.settle()

    def settle(self) -> None:
        """Look whether all tasks that are switched on have started; steps then skip the start from data."""
        if not self._settled:
            self._settled = bool((self.started | (self.base_weight == 0)).all())

    def _load_from_state_dict(self, state_dict: dict[str, object], prefix: str, *args: object) -> None:
        self._settled = False  # the checkpoint decides
        super()._load_from_state_dict(state_dict, prefix, *args)
