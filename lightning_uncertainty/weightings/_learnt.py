"""What all weightings that learn log-variances have in common: where σ starts, and the parameter that moves it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_uncertainty._tensors import keep_for_backward, reads_values
from lightning_uncertainty.weightings._base import Weighting
from lightning_uncertainty.weightings._named import named_vector
from lightning_uncertainty.weightings._weighted import Weighted

__all__ = ["LearntWeighting"]

_STEPS_BETWEEN_LOOKS = 50  # at `started` on devices where reading a value stalls the queue


class LearntWeighting(Weighting):
    """Learns log-variances; a method says what they cost, and how raw numbers become log-variances.

    `raw = start + offset`, where the offset is the parameter and `start` is given, or set by a task's first training
    batch, so that σ begins at the size of the residuals and weight decay, if any, pulls towards the data and not
    towards σ = 1.

    Args:
        start: first log-variance: a number for all tasks, or numbers by task name; others start at the optimum of their
            first batch with labels.
        base_weights: see `Weighting`.
        options: see `Weighting`.
    """

    offset: nn.Parameter
    start: Tensor
    started: Tensor
    log_variance: Tensor

    def __init__(
        self,
        start: float | Mapping[str, float] | None = None,
        base_weights: Mapping[str, float] | None = None,
        **options: object,
    ) -> None:
        super().__init__(base_weights, start=start, **options)
        self._start = start
        self._settled = False
        self._steps = 0

    @abstractmethod
    def objective(self, s: Tensor, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return the total, and the effective weights `[T]`, at log-variances `[T]`."""

    def shaped(self, raw: Tensor, present: Tensor) -> Tensor:
        """Return the log-variances `[T]` that raw numbers `[T]` stand for."""
        return raw

    def first_raw(self, raw: Tensor, losses: Tensor, present: Tensor, started: Tensor) -> tuple[Tensor, Tensor]:
        """Return where tasks start that have not, `[T]`, and which of them do so in this batch."""
        optimum = self.optimum(losses, present)
        assert optimum is not None
        return optimum, self.usable(losses, present) & ~started

    def make_vectors(self) -> None:
        if isinstance(self._start, Mapping):
            self._given_start = dict(self._start)
        else:
            self._given_start = {} if self._start is None else dict.fromkeys(self.tasks, self._start)
        self._refuse_for_normalised(self._start, "start")
        self._first_start = named_vector(self._given_start, self.tasks, 0.0, "start")
        self._some_without = 0.0 in self._constants["learnable"]
        self.register_buffer("start", self.vector())
        self.register_buffer("started", self.vector())  # 0 or 1, as booleans cannot be averaged
        self.register_buffer("log_variance", self.vector())
        self.offset = nn.Parameter(self.vector())

    def _refuse_for_normalised(self, given: object, what: str) -> None:
        """Raise where something is given by name for a task that has no log-variance.

        Raises:
            ValueError: so it is.
        """
        wrong = [name for name in self.normalised if isinstance(given, Mapping) and name in given]
        if wrong:
            raise ValueError(
                f"{what} should name tasks that have a log-variance of their own: found {', '.join(wrong)}, whose head "
                "gives one for each element; give the head its start, or leave these out"
            )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.start.copy_(torch.tensor(self._first_start))
        self.started.copy_(torch.tensor([name in self._given_start for name in self.tasks]))
        self.offset.zero_()
        self._settled = False

    def weigh(self, losses: Tensor, present: Tensor) -> Weighted:
        raw = self.start + self.offset
        if not self._settled:
            raw = self._start_from_data(raw, losses, present)
        s = self.shaped(raw, present)
        total, weights = self.objective(s, losses, present)
        log_variances = s.detach()
        if not self._settled or self._some_without:
            known = self.started > 0 if not self.normalised else (self.started > 0) & (self.exponent > 0)
            log_variances = torch.where(known, log_variances, torch.nan)
        if not self._settled:
            self._look_for_stragglers()
        return Weighted(total, weights, log_variances)

    def _start_from_data(self, raw: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """Return raw with tasks that have not started where this batch says; in training they start there."""
        started = keep_for_backward(self.started > 0)
        first, new = self.first_raw(raw.detach(), losses.detach(), present, started)
        if self.learning:
            with torch.no_grad():
                self.start.copy_(torch.where(new, first - self.offset, self.start))
        # no gradient yet: at the optimum it is rounding error alone, which Adam would blow up to a whole step
        raw = torch.where(started, raw, torch.where(new, first.to(raw.dtype), raw.detach()))
        if self.learning:
            self.started.copy_(started | new)
        return raw

    def _look_for_stragglers(self) -> None:
        """Settle when all tasks have started: on eager CPU at once, elsewhere every 50th step, compiled never."""
        if torch.compiler.is_compiling() or not self.learning:
            return
        self._steps += 1
        if reads_values(self.started.device) or self._steps % _STEPS_BETWEEN_LOOKS == 0:
            self.settle()

    def settle(self) -> None:
        """Look whether all tasks that are to start have started; steps then skip the start from data."""
        if not self._settled:
            self._settled = bool(((self.started > 0) | (self.learnable == 0)).all())

    def _load_from_state_dict(self, state_dict: dict[str, object], prefix: str, *args: object) -> None:
        self._settled = False  # the checkpoint decides
        super()._load_from_state_dict(state_dict, prefix, *args)
