"""How alike the tasks' gradients are, from their Gramian."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["SIMILARITIES", "PairMeans", "cosine", "magnitude_similarity", "pair_row", "shares_of_descent"]

_CANCELLED = 1e-6  # of the squared sum of norms: below it, a squared norm of a sum of float32 gradients is rounding


def cosine(gramian: Tensor) -> Tensor:
    r"""Return the cosines `[T, T]` of gradients, NaN for a task that has none.

    .. math::  \cos_{ij} = G_{ij} / (n_i n_j), \qquad n_i = \sqrt{G_{ii}}

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, Definition 1.

    Example:
        >>> cosine(torch.tensor([[4.0, -3.0], [-3.0, 9.0]]))
        tensor([[ 1.0000, -0.5000],
                [-0.5000,  1.0000]])
    """
    norms = _norms(gramian)
    return (gramian / norms / norms[:, None]).clamp(-1, 1)


def magnitude_similarity(gramian: Tensor) -> Tensor:
    r"""Return how alike gradients are in size `[T, T]`, 1 for norms that are equal, NaN for a task that has none.

    .. math::  2 n_i n_j / (n_i^2 + n_j^2), \qquad n_i = \sqrt{G_{ii}}

    Source: Yu et al., NeurIPS 2020, Definition 2.

    Example:
        >>> magnitude_similarity(torch.tensor([[1.0, 0.0], [0.0, 9.0]]))[0, 1]
        tensor(0.6000)
    """
    ratios = _norms(gramian)
    ratios = ratios / ratios[:, None]
    return 2 / (ratios + 1 / ratios)


def shares_of_descent(gramian: Tensor, weights: Tensor) -> Tensor:
    r"""Return how fast each task descends along the combined gradient, to first order, `[T]`.

    .. math::  \langle g_k, d \rangle / |d|^2, \qquad d = \sum_j \alpha_j g_j

    All are NaN where the gradients cancel.

    Example:
        >>> shares_of_descent(torch.tensor([[4.0, -3.0], [-3.0, 9.0]]), torch.ones(2))
        tensor([0.1429, 0.8571])
    """
    along = gramian @ weights
    squared = weights @ along
    most = (weights.abs() @ gramian.diagonal().sqrt()).square()
    return along / torch.where(squared > _CANCELLED * most, squared, torch.nan)


SIMILARITIES = {"cosine": cosine, "magnitude_similarity": magnitude_similarity}


class PairMeans:
    """Mean similarities of pairs of tasks, each over the steps where both had a gradient.

    Example:
        >>> means = PairMeans(["a", "b"])
        >>> means.add({"cosine": torch.tensor([[1.0, 0.5], [0.5, 1.0]])})
        >>> means.add({"cosine": torch.tensor([[1.0, 0.0], [0.0, 1.0]])})
        >>> means.mean("cosine").tolist()
        [[1.0, 0.25], [0.25, 1.0]]
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = tuple(tasks)
        shape = (len(self.tasks), len(self.tasks))
        self._counts = torch.zeros(shape, dtype=torch.int64)
        self._sums = {kind: torch.zeros(shape, dtype=torch.float64) for kind in SIMILARITIES}

    def add(self, found: Mapping[str, Tensor]) -> None:
        """Add the similarities of one step, by kind."""
        self._counts += ~next(iter(found.values())).isnan()
        for kind, values in found.items():
            self._sums[kind] += values.nan_to_num()

    def mean(self, kind: str) -> Tensor:
        """Return the means `[T, T]` of a kind, NaN for a pair that was never seen."""
        return self._sums[kind] / self._counts

    def __bool__(self) -> bool:
        return bool((self._counts > 0).any())

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, builtins only."""
        sums = {kind: values.tolist() for kind, values in self._sums.items()}
        return {"tasks": list(self.tasks), "counts": self._counts.tolist(), "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.tasks, self._counts = tuple(state["tasks"]), torch.tensor(state["counts"], dtype=torch.int64)
        self._sums = {kind: torch.tensor(values, dtype=torch.float64) for kind, values in state["sums"].items()}


def _norms(gramian: Tensor) -> Tensor:
    squares = gramian.diagonal()
    return torch.where(squares > 0, squares, torch.nan).sqrt()


def pair_row(found: Mapping[str, Tensor], seen: Tensor, tasks: Sequence[str], each: bool) -> dict[str, float]:
    """Return similarities `[T, T]` of pairs of the tasks seen, by log key: the least and mean cosine, and each."""
    first, second = (seen[:, None] & seen).triu(1).nonzero(as_tuple=True)
    cosines = found["cosine"][first, second]
    row = {"cosine/min": cosines.min().item(), "cosine/mean": cosines.mean().item()}
    if each:
        names = [f"{tasks[i]}/{tasks[j]}" for i, j in zip(first.tolist(), second.tolist(), strict=True)]
        for kind, values in found.items():
            row |= {f"{kind}/{name}": x for name, x in zip(names, values[first, second].tolist(), strict=True)}
    return row
