"""Gradient surgery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_uncertainty._tensors import uniform
from lightning_uncertainty.balancing.solvers._gramian_solver import GramianSolver

__all__ = ["PCGrad"]


@dataclass(frozen=True)
class PCGrad(GramianSolver):
    r"""Take out of each gradient what works against another, one after the other in random order, and add them up.

    .. math::  g_i' \leftarrow g_i' - \frac{\min(0, \langle g_i', g_j \rangle)}{\|g_j\|^2} g_j
               \quad \text{for all } j \ne i, \qquad d = \sum_i g_i',

    with the original :math:`g_j`. The weights add up to T or more: without a conflict they are 1, the plain sum. Three
    or more tasks: what is taken out last may bring back a conflict that came first, even with the task's own gradient.
    Orders are drawn on the device, from the number of the step, and all tasks are projected at once.

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, Algorithm 1.

    Example:
        >>> gramian = torch.tensor([[1.0, -1.0], [-1.0, 4.0]]).double()
        >>> PCGrad()(gramian, torch.ones(2).double(), torch.tensor(0))  # 1 + 1 / 1, 1 + 1 / 4
        tensor([2.0000, 1.2500], dtype=torch.float64)
    """

    scale_free: ClassVar[bool] = True
    deterministic: ClassVar[bool] = False
    permutes: ClassVar[bool] = False  # in distribution only

    def __call__(self, gramian: Tensor, losses: Tensor, draw: Tensor) -> Tensor:
        return projected(gramian, random_orders(draw.to(gramian.device), len(gramian))).sum(0)


def projected(gramian: Tensor, orders: Tensor) -> Tensor:
    """Return of which gradients each projected one is made, `[T, T]`; orders are those of the others, `[T, T - 1]`."""
    squares = gramian.diagonal()
    inverse = torch.where(squares > 0, 1 / squares, 0.0)
    rows = torch.diag((squares > 0).to(gramian))
    products = gramian.clone()  # of each projected gradient with each original
    for others in orders.T.unsqueeze(2).unbind():
        removed = products.gather(1, others).clamp(max=0.0) * inverse[others]
        rows.scatter_add_(1, others, -removed)
        products -= removed * gramian[others[:, 0]]
    return rows


def random_orders(draw: Tensor, tasks: int) -> Tensor:
    """Return for each of T tasks an order of the others, `[T, T - 1]`, drawn anew for every `draw`."""
    task = torch.arange(tasks, device=draw.device)
    keys = uniform(draw, task[:, None], task).fill_diagonal_(2.0)
    return keys.argsort(dim=1)[:, :-1]
