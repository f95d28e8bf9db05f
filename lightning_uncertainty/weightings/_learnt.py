"""What all weightings that learn log-variances have in common: where σ starts, and the gradient that moves it.

Long, but one file: both read one running mean of the losses, which a step brings up to date once.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_uncertainty._tensors import is_number, keep_for_backward, reads_values
from lightning_uncertainty.weightings._named import named_vector
from lightning_uncertainty.weightings._running_means import RunningMeans
from lightning_uncertainty.weightings._task_vectors import whole
from lightning_uncertainty.weightings._weighted import Weighted

__all__ = ["DEFAULT_MEMORY", "LearntWeighting"]

DEFAULT_MEMORY = 20.0
"""Steps that the running mean loss of a learnt σ remembers."""

_ENOUGH = 32.0  # labels that say where σ starts
_MOST = 100.0  # running means that a single batch may count
_FULL = 16.0  # memories after which the running mean has forgotten its first step: e^-16 of it is left
_HUGE = torch.finfo(torch.float32).max
_LONGEST = 1e6  # steps that a memory may have
_FAR = 2 * math.log(4 / 3)  # of a log-variance: σ is a third off
_NEWER = (("labels", "mean_loss", "steps"), ("late", "last_offset", "present_since"))  # in no older checkpoint
_VECTORS = ("start", "started", "labels", "mean_loss", "steps", "late", "last_offset", "present_since", "log_variance")
_LOWEST = -80.0  # of a log-variance that losses of 0 ask for: a weight of 5e34, with room for base weights in float32
_STEPS_BETWEEN_LOOKS = 50  # at `started` on devices where reading a value stalls the queue


class LearntWeighting(RunningMeans):
    r"""Learns log-variances; a method says what they cost, and how raw numbers become log-variances.

    `raw = start + offset`, where the offset is the parameter and `start` is given, or set by a task's first labels in
    training, so that σ begins at the size of the residuals and weight decay, if any, pulls towards the data and not
    towards σ = 1.

    The start follows the mean loss over the first labels until there are 32, and only then is the parameter's alone. A
    loss that comes without a count, as a mean, is taken for one of enough labels.

    Momentum and weight decay move the offset of a task whose losses asked for nothing. A task without labels in all
    micro-batches of a step of the optimizer is where it was: the next call takes what was moved out of `start`.

    The total and its gradient in the losses are those of a method's `objective`. Its gradient in `s` is that at the
    running mean loss in place of the batch's,

    .. math::  \frac{\partial}{\partial s_i} = g_i(s, \bar L), \qquad
               \bar L \leftarrow \bar L + \frac{1 - d}{1 - d^n} (\min(L, 100 \bar L) - \bar L), \qquad
               d = 1 - 1 / \text{memory},

    `n` counting the task's steps. All objectives are linear in `L`: it is the method's own gradient, averaged over
    about `memory` batches and taken at today's `s`, and it is zero at the same place. `g` is bounded: never steeper
    downwards than the penalty. Losses of 0, which have no optimum, take `s` no further down than -80. A batch of a
    thousandfold loss, whose own gradient would stay in the second moment of Adam for a thousand steps and hold σ for as
    long, moves σ by what it is worth and is forgotten.

    Args:
        start: first log-variance: a number for all tasks, or numbers by task name; others start at the optimum of their
            first labels.
        base_weights: see `Weighting`.
        memory: how many steps the running mean remembers, at least 1, which is the batch alone; None is the gradient of
            the batch as published, without any bound.
        restart: after how many steps in a row in which σ was a third off the optimum of the running mean loss it starts
            anew: the mean does, and for as many steps as it remembers `start` moves to its optimum; None never.
        options: see `Weighting`.

    Raises:
        ValueError: the memory is below 1 or above a million, or a restart comes before the first step.
    """

    short_way = False
    offset: nn.Parameter
    start: Tensor
    started: Tensor
    labels: Tensor
    late: Tensor  # steps in a row that σ was a third off, where it may restart; below 0 steps that are left of one
    last_offset: Tensor  # of the last step of training
    present_since: Tensor  # 1 where a task had a loss since an optimizer moved its offset
    log_variance: Tensor

    def __init__(
        self,
        start: float | Mapping[str, float] | None = None,
        base_weights: Mapping[str, float] | None = None,
        memory: float | None = DEFAULT_MEMORY,
        restart: int | None = None,
        **options: object,
    ) -> None:
        shown = None if memory == DEFAULT_MEMORY else memory
        if memory is not None and not (is_number(memory) and 1 <= memory <= _LONGEST):
            raise ValueError(f"memory should be a number of steps from 1 to {_LONGEST:g}, or None: found {memory!r}")
        if restart is not None and not (is_number(restart) and restart >= 1):
            raise ValueError(f"restart should be a number of steps, at least 1, or None: found {restart!r}")
        share = 1 / (DEFAULT_MEMORY if memory is None else memory)
        super().__init__(share, base_weights, start=start, **options, memory=shown, restart=restart)
        self.memory, self.restart = memory, restart
        self._start = start
        self._settled = False  # whether all have started
        self._all_present = False  # whether `present_since` is 1 for all
        self._looks = 0
        self._labels: Tensor | None = None  # of the losses to come

    @abstractmethod
    def objective(self, s: Tensor, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return the total, and the effective weights `[T]`, at log-variances `[T]`."""

    @abstractmethod
    def slope(self, s: Tensor, weights: Tensor, mean_loss: Tensor, steps: Tensor, seen: Tensor) -> Tensor:
        """Return the gradient of the objective in log-variances `[T]`, at running mean losses, bounded.

        Args:
            s: log-variances `[T]`.
            weights: the effective weights `[T]` there.
            mean_loss: running mean losses `[T]`.
            steps: how many steps each task was present in, `[T]`.
            seen: which tasks have a loss in this step, `[T]`; of others any number will do.
        """

    @abstractmethod
    def loss_at(self, s: Tensor) -> Tensor:
        """Return the losses `[T]` of which log-variances `[T]` are the optimum; NaN where they do not tell."""

    def shaped(self, raw: Tensor, present: Tensor) -> Tensor:
        """Return the log-variances `[T]` that raw numbers `[T]` stand for."""
        return raw

    def pooled(self, numbers: Tensor) -> Tensor:
        """Return the sums of numbers `[T]` over the tasks that share a log-variance with each."""
        return numbers

    def running_optimum(self, mean_loss: Tensor, steps: Tensor, seen: Tensor) -> Tensor:
        """Return the log-variances `[T]` to which the running means lead; arguments as of `slope`."""
        optimum = self.optimum(mean_loss, steps)
        assert optimum is not None
        return optimum

    def first_raw(self, mean_loss: Tensor, steps: Tensor) -> Tensor:
        """Return where tasks of these mean losses start, `[T]`."""
        optimum = self.optimum(mean_loss, steps)
        assert optimum is not None
        return optimum

    def make_vectors(self) -> None:
        super().make_vectors()
        if isinstance(self._start, Mapping):
            self._given_start = dict(self._start)
        else:
            self._given_start = {} if self._start is None else dict.fromkeys(self.tasks, self._start)
        self._refuse_for_normalised(self._start, "start")
        self._first_start = named_vector(self._given_start, self.tasks, 0.0, "start")
        for name in _VECTORS:
            self.register_buffer(name, self.vector())  # started is 0 or 1, as booleans cannot be averaged
        self.offset = nn.Parameter(self.vector())

    def _refuse_for_normalised(self, given: object, what: str) -> None:
        """Raise where something is given by name for a task that has no log-variance.

        Raises:
            ValueError: so it is.
        """
        wrong = [name for name in self.normalised if isinstance(given, Mapping) and name in given]
        if wrong:
            why = (
                "constant terms, which have none; leave these out"
                if set(wrong) <= set(self.constant)
                else "whose head gives one for each element; give the head its start, or leave these out"
            )
            raise ValueError(
                f"{what} should name tasks that have a log-variance of their own: found {', '.join(wrong)}, {why}"
            )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.start.copy_(torch.tensor(self._first_start))
        self.started.copy_(torch.tensor([name in self._given_start for name in self.tasks]))
        self.labels.copy_(_ENOUGH * self.started)
        self.mean_loss.zero_()
        self.steps.zero_()
        self.late.zero_()
        self.offset.zero_()
        self.last_offset.zero_()
        self.present_since.fill_(1.0)
        self._settled = self._all_present = False

    def extra_repr(self) -> str:
        given = super().extra_repr()
        return given if self.memory is not None else ", ".join(filter(None, [given, "memory=None"]))

    def count_labels(self, labels: Tensor) -> None:
        if not self._settled:
            self._labels = labels.detach()

    def weigh(self, losses: Tensor, present: Tensor) -> Weighted:
        if not self._settled:
            self._look_for_stragglers()
        if self._is_ordinary(losses, present):
            return self.weigh_all(losses)
        seen, mean_loss, steps, labels = self._remembered(losses.detach(), present)
        raw = self._start_without_drift(seen) + self.offset
        if labels is not None:
            raw = self._start_from_data(raw, seen, mean_loss, steps, labels)
        s = self.shaped(raw, present)
        fixed = s if self.memory is None else s.detach().clamp(min=_LOWEST)
        total, weights = self.objective(fixed, losses, present)
        if self.memory is not None and s.requires_grad:
            slope = self.slope(fixed, weights, mean_loss, steps, seen)
            slope = torch.where(seen & ((fixed > _LOWEST) | (slope < 0)), slope, 0.0)
            total = total + slope.to(s.dtype).dot(s - s.detach())
        log_variances = fixed.detach()
        if self.learning:
            self.mean_loss.copy_(mean_loss)
            self.steps.copy_(steps)
            if self.restart is not None:
                self._restart(log_variances, mean_loss, steps, seen)
        if not self._settled or self._some_without:
            known = (self.started > 0) | (self.pooled(self.labels) > 0)
            if self.normalised:
                known = known & (self.exponent > 0)
            log_variances = torch.where(known, log_variances, torch.nan)
        return Weighted(total, weights, log_variances)

    def weigh_all(self, losses: Tensor) -> Weighted:
        """Return what `weigh` does in an ordinary step, where `short_way` says that a method knows a shorter one."""
        raise NotImplementedError

    def _is_ordinary(self, losses: Tensor, present: Tensor) -> bool:
        """Whether all have started, none was absent since the optimizer moved it, and all have a loss, no spike."""
        if not (self.short_way and self._settled and self.memory is not None and self.restart is None):
            return False
        if not self.all_heard(losses, present, below=_MOST):
            return False
        if not self._all_present:
            self._all_present = bool((self.present_since > 0).all())
        return self._all_present

    def _remembered(self, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return which losses count, and running means, steps and labels with them, `[T]` each.

        A loss of zero has no optimum, but its part in a mean. Labels are None once all tasks have started.
        """
        seen = present & (losses.clamp(0.0, _HUGE) == losses)
        mean = self.mean_loss.to(losses)
        newest = torch.where(mean > 0, torch.minimum(losses, _MOST * mean), losses)
        if self._some_without:
            seen = seen & (self.learnable > 0)
        labels = None
        if not self._settled:
            first = self.started == 0
            seen = seen & ~(first & (self.labels == 0) & (losses == 0))
            newest = torch.where(first, losses, newest)
            told, self._labels = self._labels, None
            count = torch.full_like(mean, _ENOUGH) if told is None else torch.where(told < torch.inf, told, _ENOUGH)
            labels = self.labels + torch.where(seen & first, count.to(self.labels), 0.0)
        steps = self.steps + seen
        # `mean + rate · (newest - mean)` would lose a loss that has fallen by orders of magnitude to rounding
        after = torch.lerp(mean, newest, self.rates(steps).to(mean))
        if labels is not None:
            of = labels.to(mean)
            after = torch.where(first, self.labels / of * mean + (of - self.labels) / of * newest, after)
        return seen, torch.where(seen, after, mean), steps, labels

    def _start_without_drift(self, seen: Tensor) -> Tensor:
        """Return the start, from which is taken what moved tasks that no loss asked to move; training stays there."""
        offset = self.offset.detach()
        drift = offset - self.last_offset
        start = torch.where(self.present_since > 0, self.start, self.start - drift)
        if self.learning:
            self._all_present = False
            since = self.present_since * (drift == 0)
            self.start.copy_(start)
            self.last_offset.copy_(offset)
            self.present_since.copy_(torch.maximum(since, (self.pooled(seen.to(since)) > 0).to(since)))
        return start

    def _start_from_data(self, raw: Tensor, seen: Tensor, mean_loss: Tensor, steps: Tensor, labels: Tensor) -> Tensor:
        """Return raw with tasks that have not started where their first labels say; in training they start there."""
        started = keep_for_backward(self.started > 0)
        whose = self.pooled(started.to(raw.dtype))  # one starts for all; who joins those that have takes theirs over
        theirs = self.pooled(raw.detach() * started) / whose.clamp(min=1)
        first = torch.where(whose > 0, theirs.to(mean_loss), self.first_raw(mean_loss, steps).to(mean_loss))
        new = (self.pooled((seen | started).to(raw.dtype)) > 0) & ~started
        if not self.learning:
            new = new & (self.pooled(self.labels) == 0)
        else:
            with torch.no_grad():
                self.start.copy_(torch.where(new, first - self.offset, self.start))
        # no gradient yet: at the optimum it is rounding error alone, which Adam would blow up to a whole step
        raw = torch.where(started, raw, torch.where(new, first.to(raw.dtype), raw.detach()))
        if self.learning:
            enough = new & ((whose > 0) | (self.pooled(labels) >= _ENOUGH))
            self.started.copy_(started | enough)
            self.labels.copy_(torch.where(started | enough, _ENOUGH, labels))
        return raw

    @torch.no_grad()
    def _restart(self, s: Tensor, mean_loss: Tensor, steps: Tensor, seen: Tensor) -> None:
        """Have σ start anew that was a third off for too long: its start follows the optimum of a new running mean."""
        assert self.restart is not None
        way = self.running_optimum(mean_loss, steps, seen).to(s.dtype) - s
        follows = self.late < 0
        far = (way.abs() > _FAR) & (mean_loss > 0) & (self.started > 0)
        late = torch.where(seen, torch.where(follows, self.late + 1, (self.late + 1) * far), self.late)
        due = self.pooled((late >= self.restart).to(s.dtype)) > 0
        moves = (self.pooled((follows & seen).to(s.dtype)) > 0) & (mean_loss > 0)
        self.start.add_(torch.where(moves, way, 0.0))
        self.late.copy_(torch.where(due, -math.ceil(1 / self._share), late))
        self.steps.mul_(~due)

    def _look_for_stragglers(self) -> None:
        """Settle when all tasks have started: on eager CPU at once, elsewhere every 50th step, compiled never."""
        if torch.compiler.is_compiling() or not self.learning:
            return
        self._looks += 1
        if reads_values(self.started) or self._looks % _STEPS_BETWEEN_LOOKS == 0:
            self.settle()

    def settle(self) -> None:
        """Look whether all tasks that are to start have started; steps then skip the start from data."""
        if not self._settled and ((self.started > 0) | (self.learnable == 0)).all():
            self._settled, self._labels = True, None

    def _load_from_state_dict(self, state_dict: dict[str, object], prefix: str, *args: object) -> None:
        self._settled = self._all_present = False  # the checkpoint decides
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _complete(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Fill what checkpoints had not before there were running means: what has started is at its optimum."""
        held = [state_dict[prefix + name] for name in ("start", "started", "offset") if prefix + name in state_dict]
        if len(held) < 3 or any(vector.shape != self.start.shape for vector in held):
            return  # refused
        start, started, offset = (whole(vector.detach()) for vector in held)
        s = start + offset
        loss = self.loss_at(s.to(self.exponent.device)).to(s)
        known = (started > 0) & loss.isfinite()
        newer = {
            "labels": torch.where(started > 0, _ENOUGH, 0.0),
            "mean_loss": torch.where(known, loss, 0.0),
            "steps": torch.where(known, math.ceil(_FULL / self._share), 0.0),
            "late": torch.zeros_like(s),
            "last_offset": offset,
            "present_since": torch.ones_like(s),
        }
        for names in _NEWER:
            if not any(prefix + name in state_dict for name in names):
                state_dict.update({prefix + name: newer[name].to(s) for name in names})
