"""One number for all tasks of a model, from a number or several for each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["MeanRank", "MultiTaskGain"]

TaskValues = Mapping[str, "float | Tensor | Mapping[str, float | Tensor]"]
TaskDirections = Mapping[str, bool | Mapping[str, bool]]

Key = tuple[str, str]  # task and metric; "" where a task has one number without a name


class MultiTaskGain(Metric):
    r"""Relative gain of a multi-task model over single-task models, in percent: + is better.

    .. math::

        \Delta_m = \frac{100}{T} \sum_i \frac{1}{|J_i|} \sum_{j \in J_i}
                   (-1)^{l_{ij}} \frac{M_{ij} - B_{ij}}{|B_{ij}|}

    over T tasks, of which each has metrics J with values M, baselines B, and l = 1 where lower is better. Metrics are
    averaged inside their task first, so that a task with many counts as one with few. Papers on gradient balancing
    print the opposite sign, and the mean over all metrics.

    Updates are averaged: one for each seed gives the gain of the mean values.

    Args:
        baselines: by task, or by task and metric: those of single-task models, or of any other model.
        higher_is_better: likewise; a direction given for a task holds for all its metrics.
        auxiliary: tasks that are trained as help for the others, and left out.

    Raises:
        ValueError: a baseline is zero or not finite, a direction is missing, names do not agree, or every task is
            auxiliary.

    Source: Maninis, Radosavovic & Kokkinos, "Attentive Single-Tasking of Multiple Tasks", CVPR 2019.

    Example:
        >>> gain = MultiTaskGain({"depth": 0.5, "semantics": 60.0}, {"depth": False, "semantics": True})
        >>> gain.update({"depth": 0.4, "semantics": 63.0})  # 20 % and 5 %
        >>> round(gain.compute().item(), 2)
        12.5
    """

    full_state_update = False
    higher_is_better = True
    sums: Tensor
    count: Tensor

    def __init__(
        self, baselines: TaskValues, higher_is_better: TaskDirections, *, auxiliary: Iterable[str] = ()
    ) -> None:
        super().__init__()
        self.auxiliary = frozenset(auxiliary)
        _check_names(self.auxiliary, baselines, "auxiliary should name tasks of the baselines")
        self.baselines = {key: float(value) for key, value in _flat(baselines).items() if key[0] not in self.auxiliary}
        if not self.baselines:
            raise ValueError("a gain should be over one task at least: found all of them auxiliary; leave one out")
        for key, value in self.baselines.items():
            if value == 0 or not math.isfinite(value):
                raise ValueError(
                    f"a baseline should be finite and not zero, as gains are relative to it: found {value:g} for "
                    f"{_name(key)}; choose another metric for this task"
                )
        self._signs = [1 if _direction(higher_is_better, key) else -1 for key in self.baselines]
        self.add_state(
            "sums", torch.zeros(len(self.baselines), dtype=torch.float32, device="cpu"), dist_reduce_fx="sum"
        )
        self.add_state("count", torch.zeros((), dtype=torch.int64, device="cpu"), dist_reduce_fx="sum")

    def update(self, values: TaskValues) -> None:
        """Add the values of a model: by task, or by task and metric, as the baselines are.

        Raises:
            ValueError: a task or metric is missing or unknown.
        """
        found = {key: float(value) for key, value in _flat(values).items() if key[0] not in self.auxiliary}
        _check_same(found, self.baselines)
        self.sums += self.sums.new_tensor([found[key] for key in self.baselines])
        self.count += 1

    def compute(self) -> Tensor:
        baselines = self.sums.new_tensor(list(self.baselines.values()))
        gains = self.sums.new_tensor(self._signs) * (self.sums / self.count - baselines) / baselines.abs()
        return 100 * _task_mean(gains, list(self.baselines))


class MeanRank(Metric):
    r"""Mean rank of every model over the tasks, 1 the best: lower is better.

    Models are ranked by each metric; ranks are averaged inside a task first, as in `MultiTaskGain`, and then over
    tasks. Models that tie share the mean of their places (1, 2.5, 2.5, 4), so that the ranks of n models always add up
    to n (n + 1) / 2; some tables give them the best of their places, or leave no gap after them. NaN, as of a model
    that diverged, is last. Ranks of several updates are averaged.

    Args:
        models: their names, in the order of the result.
        higher_is_better: by task, or by task and metric.
        auxiliary: tasks that are trained as help for the others, and left out.

    Raises:
        ValueError: there is no model or one is named twice, a direction is missing, or names do not agree.

    Example:
        >>> rank = MeanRank(["equal", "uncertainty"], {"depth": False, "semantics": True})
        >>> rank.update({"equal": {"depth": 0.5, "semantics": 60.0}, "uncertainty": {"depth": 0.4, "semantics": 60.0}})
        >>> rank.compute()
        tensor([1.7500, 1.2500])
    """

    full_state_update = False
    higher_is_better = False
    sums: Tensor
    count: Tensor

    def __init__(
        self, models: Iterable[str], higher_is_better: TaskDirections, *, auxiliary: Iterable[str] = ()
    ) -> None:
        super().__init__()
        self.models = tuple(models)
        if not self.models or len(set(self.models)) < len(self.models):
            raise ValueError(f"models should be named, once each: found {', '.join(self.models) or 'none'}")
        self.auxiliary = frozenset(auxiliary)
        self._directions = dict(higher_is_better)
        self.add_state("sums", torch.zeros(len(self.models), dtype=torch.float32, device="cpu"), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64, device="cpu"), dist_reduce_fx="sum")

    def update(self, values: Mapping[str, TaskValues]) -> None:
        """Add a table: the values of every model, by task, or by task and metric.

        Raises:
            ValueError: a model, task or metric is missing or unknown, or every task is auxiliary.
        """
        _check_names(values, self.models, "values should be of the models")
        _check_names(self.models, values, "values should be of every model")
        tables = {model: _flat(values[model]) for model in self.models}
        keys = [key for key in tables[self.models[0]] if key[0] not in self.auxiliary]
        if not keys:
            raise ValueError("a rank should be over one task at least: found none; leave one that is not auxiliary")
        for table in tables.values():
            _check_same([key for key in table if key[0] not in self.auxiliary], keys)
        signs = [1 if _direction(self._directions, key) else -1 for key in keys]
        scores = [
            [sign * float(table[key]) for sign, key in zip(signs, keys, strict=True)] for table in tables.values()
        ]
        ranks = _ranks(torch.tensor(scores, dtype=torch.float64, device="cpu"))
        self.sums += _task_mean(ranks, keys).to(self.sums)
        self.count += 1

    def compute(self) -> Tensor:
        return self.sums / self.count


def _ranks(scores: Tensor) -> Tensor:
    """Return ranks over the first dimension `[M, K]`: 1 the highest score, NaN last; ties share their places' mean."""
    scores = torch.where(scores.isnan(), -math.inf, scores)
    better = (scores[None] > scores[:, None]).sum(1)
    equal = (scores[None] == scores[:, None]).sum(1)
    return better + (equal + 1).double() / 2


def _task_mean(values: Tensor, keys: list[Key]) -> Tensor:
    """Return the mean over tasks of the mean over each task's metrics `[..., K] -> [...]`."""
    tasks = [task for task, _ in keys]
    shares = [1 / (tasks.count(task) * len(set(tasks))) for task in tasks]
    return values @ values.new_tensor(shares)


def _flat(values: TaskValues) -> dict[Key, float | Tensor]:
    flat: dict[Key, float | Tensor] = {}
    for task, value in values.items():
        flat |= (
            {(task, name): one for name, one in value.items()} if isinstance(value, Mapping) else {(task, ""): value}
        )
    return flat


def _direction(directions: TaskDirections, key: Key) -> bool:
    task, metric = key
    found = directions.get(task)
    direction = found.get(metric) if isinstance(found, Mapping) else found
    if direction is None:
        raise ValueError(
            f"higher_is_better should say True or False for every task and metric: found nothing for {_name(key)}"
        )
    return bool(direction)


def _name(key: Key) -> str:
    return "/".join(part for part in key if part)


def _check_names(names: Iterable[str], known: Iterable[str], rule: str) -> None:
    known = list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{rule} ({', '.join(known)}): found {', '.join(unknown)}")


def _check_same(found: Iterable[Key], known: Iterable[Key]) -> None:
    names, expected = {_name(key) for key in found}, [_name(key) for key in known]
    if names != set(expected):
        raise ValueError(
            f"values should be those of {', '.join(expected)}: found {', '.join(sorted(names)) or 'none'}; give a "
            "number for each"
        )
