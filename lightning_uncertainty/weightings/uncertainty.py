"""Homoscedastic uncertainty weighting (Kendall, Gal & Cipolla, CVPR 2018)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_uncertainty._tensors import is_number, one_way_clamp, promote
from lightning_uncertainty.likelihoods import optimal_log_variance
from lightning_uncertainty.weightings._base import Weighting
from lightning_uncertainty.weightings._learnt import DEFAULT_MEMORY, LearntWeighting
from lightning_uncertainty.weightings._named import check_names
from lightning_uncertainty.weightings._weighted import Weighted

__all__ = ["UncertaintyWeighting", "as_weighting"]

Bounds = tuple[float, float]
_OPEN: Bounds = (-math.inf, math.inf)


class UncertaintyWeighting(LearntWeighting):
    r"""Learn one log-variance `s = log σ²` per task, together with the network.

    .. math::  \sum_i b_i \left( c_i e^{-a_i s_i} L_i + r_i s_i \right)

    over the tasks present, with `c, a, r` of each task's likelihood and base weights `b`. A task without labels
    contributes neither term. `s = start + offset`, where the offset is the parameter: `start` is given, or the optimum
    of the mean over the task's first labels in training, at least 32 of them, so that σ begins at the size of the
    residuals and weight decay, if any, pulls towards the data and not towards σ = 1. Of a loss that comes as a mean
    nobody knows of how many labels it is: it counts as enough.

    The gradient of `s` is the paper's at the running mean loss in place of the batch's, and bounded below:

    .. math::  \frac{\partial}{\partial s_i} = b_i r_i \max \left( 1 - e^{a_i (s^*_i - s_i)}, -1 \right), \qquad
               \bar L \leftarrow \bar L + \frac{1 - d}{1 - d^n} (\min(L, 100 \bar L) - \bar L), \qquad
               d = 1 - 1 / \text{memory},

    with `s*` the optimum of `L̄` and `n` counting the task's steps. The total is linear in `L`, so this is the paper's
    gradient averaged over about `memory` batches, at today's `s`; it is zero where the paper's is zero in the mean. One
    batch of a thousandfold loss would otherwise stay in the second moment of Adam, and hold σ for a thousand steps. The
    value of the total and its gradient in the losses are the paper's for every batch.

    A normalised likelihood, as of a heteroscedastic head, already has a log-variance for each element, from which one
    of the task could not be told apart: its term is `b L`, its weight `b`, and it has no σ here (see `meanings`).

    Source: Kendall, Gal & Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics", CVPR 2018, Eq. 7 and 10.

    Args:
        start: first log-variance: a number for all tasks, or numbers by task name; a task without a number, and None,
            start at the optimum of the first labels (0.0 is σ = 1, the paper's choice).
        base_weights: see `Weighting`.
        bounds: a lowest and a highest `s`, each may be infinite: a pair for all tasks, or pairs by task name. A lowest
            `s` caps the weight of a task whose loss goes to zero. Unlike a clamp, a bound keeps the gradient that leads
            back, so `s` leaves it as soon as the loss does. `optimum` is the nearest that the bounds allow.
        shared: groups of task names; the tasks of a group have one likelihood and one `s`, whose optimum is
            `log(a Σ b c L / Σ b r) / a` over those present: σ of their pooled residuals. Every task keeps its own
            copy in checkpoints.
        memory: how many steps the running mean of the gradient in `s` remembers, at least 1, which is the batch alone;
            None is the batch's own gradient without a bound, as published.
        restart: after how many steps in a row in which σ was a third off the optimum of the running mean loss it starts
            anew: the mean does, and for as many steps as it remembers `start` moves to its optimum, and σ with it; None
            never. At a small learning rate nothing else is as fast after a change of the loss. It does so under a
            warm-up that holds σ, too.

    Raises:
        ValueError: the memory is below 1 or above a million, or the restart below 1; (when tasks are registered) a name
            is no task, a number is not finite or negative, bounds are not a lower and a higher one, a start is outside
            its bounds, or tasks that share `s` differ in likelihood, bounds or start, or do so in two groups; or one of
            these names a task whose likelihood is normalised.

    Example:
        >>> from lightning_uncertainty.likelihoods import Gaussian
        >>> weighting = UncertaintyWeighting(start=0.0).bind({"depth": Gaussian()})
        >>> weighted = weighting(torch.tensor([4.0]), torch.tensor([True]))
        >>> weighted.total.item(), weighted.weights.tolist(), weighted.log_variances.tolist()
        (2.0, [0.5], [0.0])
    """

    takes_normalised = True
    takes_constant = True
    steepest: Tensor  # 2 b r
    low: Tensor
    high: Tensor
    group: Tensor  # [T, T], 1 where two tasks share s

    def __init__(
        self,
        start: float | Mapping[str, float] | None = None,
        base_weights: Mapping[str, float] | None = None,
        *,
        bounds: Bounds | Mapping[str, Bounds] | None = None,
        shared: Sequence[Sequence[str]] = (),
        memory: float | None = DEFAULT_MEMORY,
        restart: int | None = None,
    ) -> None:
        if not isinstance(shared, Sequence) or any(isinstance(part, str) for part in [shared, *shared]):
            raise ValueError(f"shared should be groups of task names, as in [['depth', 'width']]: found {shared!r}")
        super().__init__(start, base_weights, memory, restart, bounds=bounds, shared=tuple(map(tuple, shared)))
        self._bounds = bounds
        self._shared = tuple(map(tuple, shared))

    def make_vectors(self) -> None:
        super().make_vectors()
        self._refuse_for_normalised(self._bounds, "bounds")
        self._refuse_for_normalised(dict.fromkeys(name for group in self._shared for name in group), "shared")
        bounds = _bounds_of(self._bounds, self.tasks)
        for name, start in self._given_start.items():
            low, high = bounds[name]
            if not low <= start <= high:
                raise ValueError(
                    f"a start should lie between its bounds {low:g} and {high:g}: found {start:g} for task {name!r}"
                )
        self.short_way = self._bounds is None and not self._shared
        self.add_constant("steepest", (2 * penalty for penalty in self._constants["base_penalty"]))
        if self._bounds is not None:
            self.add_constant("low", (low for low, _ in bounds.values()))
            self.add_constant("high", (high for _, high in bounds.values()))
        if self._shared:
            alike = {name: (self._meanings[name], bounds[name], self._given_start.get(name)) for name in self.tasks}
            self.add_constant("group", _membership(self._shared, alike))

    def shaped(self, raw: Tensor, present: Tensor) -> Tensor:
        if self._shared:
            pooled = self.group @ raw  # the value is the mean of copies that are equal, the gradient that of one s
            raw = pooled + (pooled / self.group.sum(1) - pooled).detach()
        return raw if self._bounds is None else one_way_clamp(raw, self.low, self.high)

    def objective(self, s: Tensor, losses: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        return self.balanced_objective(s, losses, present)

    def pooled(self, numbers: Tensor) -> Tensor:
        return self.group.to(numbers) @ numbers if self._shared else numbers  # float64 in a float32 module

    def slope(self, s: Tensor, weights: Tensor, mean_loss: Tensor, steps: Tensor, seen: Tensor) -> Tensor:
        return self.base_penalty - self._pull(weights, self._pooled_losses(mean_loss, steps))

    def _pull(self, weights: Tensor, losses: Tensor) -> Tensor:
        """Return by how much losses pull `s` upwards, against the penalty `b r` and never more than twice as hard."""
        own: dict[str, Any] = self._buffers
        return torch.minimum(own["exponent"] * weights * losses, own["steepest"])

    def weigh_all(self, losses: Tensor) -> Weighted:
        own: dict[str, Any] = self._buffers
        start, penalty, offset = own["start"], own["base_penalty"], self.offset
        mean_loss = self.hear_all(losses.detach())
        moved = offset.detach()
        own["last_offset"].copy_(moved)
        s = start + moved
        weights = self.balanced_weights(s)
        pull = self._pull(weights, mean_loss)
        # one product has the value of w L + b r s, and the gradient in the offset is the slope: slope + pull = b r
        total = torch.dot(
            torch.cat([losses, offset, moved, start]), torch.cat([weights, penalty - pull, pull, penalty])
        )
        return Weighted(total, weights, s)

    def loss_at(self, s: Tensor) -> Tensor:
        return torch.exp(self.exponent * s - self.log_ratio)

    def optimum(self, losses: Tensor, steps: Tensor | None = None) -> Tensor:
        losses = self._pooled_losses(promote(losses), steps)
        optimum = optimal_log_variance(losses, self.exponent, self.log_ratio)
        return optimum if self._bounds is None else optimum.clamp(self.low, self.high)

    def _pooled_losses(self, losses: Tensor, steps: Tensor | None) -> Tensor:
        """Return the mean loss over the tasks that share a log-variance, `[T]`; c and r are alike in a group."""
        if not self._shared:
            return losses
        count = self.base_weight if steps is None else steps * self.base_weight
        sums = torch.where(count > 0, count * losses, 0.0)
        return self.pooled(sums) / self.pooled(count.to(sums)).clamp(min=torch.finfo(sums.dtype).tiny)

    def meanings(self) -> dict[str, str]:
        others = {task: [name for name in group if name != task] for group in self._shared for task in group}
        return {
            task: f"{meaning}, pooled with {', '.join(others[task])}" if others.get(task) else meaning
            for task, meaning in super().meanings().items()
        }


def as_weighting(weighting: Weighting | None) -> Weighting:
    """Return a weighting, `UncertaintyWeighting()` where there is none.

    Raises:
        ValueError: it is no object of a weighting.
    """
    if weighting is None:
        return UncertaintyWeighting()
    if not isinstance(weighting, Weighting):
        name = weighting.__name__ if isinstance(weighting, type) else "UncertaintyWeighting"
        raise ValueError(f"weighting should be a Weighting: found {weighting!r}; make an object, as in {name}()")
    return weighting


def _bounds_of(bounds: Bounds | Mapping[str, Bounds] | None, tasks: tuple[str, ...]) -> dict[str, Bounds]:
    """Return the bounds of every task; none are infinite.

    Raises:
        ValueError: a name is no task, or bounds are not a lower and a higher number.
    """
    given = bounds if isinstance(bounds, Mapping) else dict.fromkeys(tasks, _OPEN if bounds is None else bounds)
    check_names(given, tasks, "bounds")
    for name, pair in given.items():
        paired = isinstance(pair, Sequence) and len(pair) == 2 and all(map(is_number, pair))
        if not paired or not pair[0] < pair[1]:
            raise ValueError(
                f"bounds should be a lower and a higher log-variance, -inf or inf for none: found {pair!r} for task "
                f"{name!r}"
            )
    return {name: (float(given[name][0]), float(given[name][1])) if name in given else _OPEN for name in tasks}


def _membership(groups: Sequence[Sequence[str]], alike: Mapping[str, object]) -> list[list[float]]:
    """Return which tasks share `s`, `[T][T]`; `alike` holds what those of a group have in common.

    Raises:
        ValueError: a name is no task or is there twice, or tasks of a group differ.
    """
    named = [name for group in groups for name in group]
    wrong = [name for name in named if name not in alike or named.count(name) > 1]
    if wrong:
        found = ", ".join(dict.fromkeys(wrong))
        raise ValueError(f"shared should name registered tasks ({', '.join(alike)}), each once: found {found}")
    for group in groups:
        if any(alike[name] != alike[group[0]] for name in group):
            raise ValueError(
                f"tasks that share a log-variance should have one likelihood, one start and one pair of bounds: found "
                f"different ones in {', '.join(group)}"
            )
    group_of = {name: group for group in groups for name in group}
    return [[float(a == b or a in group_of.get(b, ())) for b in alike] for a in alike]
