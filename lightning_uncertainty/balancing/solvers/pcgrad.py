"""Gradient surgery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_uncertainty._tensors import uniform, uniform_on_host
from lightning_uncertainty.balancing.solvers._gramian_solver import GramianSolver, on_host, waits

__all__ = ["PCGrad"]


@dataclass(frozen=True)
class PCGrad(GramianSolver):
    r"""Take out of each gradient what works against another, one after the other in random order, and add them up.

    .. math::  g_i' \leftarrow g_i' - \frac{\min(0, \langle g_i', g_j \rangle)}{\|g_j\|^2} g_j
               \quad \text{for all } j \ne i, \qquad d = \sum_i g_i',

    with the original :math:`g_j`. The weights add up to T or more: without a conflict they are 1, the plain sum. Three
    or more tasks: what is taken out last may bring back a conflict that came first, even with the task's own gradient.
    Orders are drawn from the number of the step, and all tasks are projected at once: on a GPU without waiting for it,
    else on the host.

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
        tasks = len(gramian)
        if waits(gramian.device):
            return projected(gramian, random_orders(draw.to(gramian.device), tasks)).sum(0)
        rows = projected_on_host(on_host(gramian).numpy(), random_orders_on_host(int(draw), tasks))
        return torch.from_numpy(rows.sum(0)).to(gramian)


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


@np.errstate(all="ignore")
def projected_on_host(gramian: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Return what `projected` does: a tenth of the time, of small matrices."""
    squares = gramian.diagonal()
    inverse = np.divide(1.0, squares, out=np.zeros_like(squares), where=squares > 0)
    rows, products, each = np.diag(1.0 * (squares > 0)), gramian.copy(), np.arange(len(gramian))
    for others in orders.T:
        removed = np.minimum(products[each, others], 0.0) * inverse[others]
        rows[each, others] -= removed
        products -= removed[:, None] * gramian[others]
    return rows


def random_orders(draw: Tensor, tasks: int) -> Tensor:
    """Return for each of T tasks an order of the others, `[T, T - 1]`, drawn anew for every `draw`."""
    task = torch.arange(tasks, device=draw.device)
    keys = uniform(draw, task[:, None], task).fill_diagonal_(2.0)
    return keys.argsort(dim=1, stable=True)[:, :-1]


def random_orders_on_host(draw: int, tasks: int) -> np.ndarray:
    """Return what `random_orders` does."""
    task = np.arange(tasks)
    if tasks == 2:
        return 1 - task[:, None]
    keys = uniform_on_host(draw, task[:, None], task)
    np.fill_diagonal(keys, 2.0)
    return keys.argsort(axis=1, kind="stable")[:, :-1]
