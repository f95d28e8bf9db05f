"""Impartial gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_uncertainty.balancing.solvers._gramian_solver import GramianSolver, on_host, waits

__all__ = ["IMTLG"]


@dataclass(frozen=True)
class IMTLG(GramianSolver):
    r"""Take the combination that goes equally far along every gradient.

    .. math::  \langle d, g_i / \|g_i\| \rangle = \text{const}, \qquad
               \alpha \propto G^{-1} \sqrt{\operatorname{diag} G}, \quad \sum_i \alpha_i = 1.

    Two tasks have weights in inverse proportion to their lengths, whatever the angle. From three tasks on a weight may
    be negative. Should the solution's own sum be negative, dividing by it turns the published combination round, and
    every loss rises; this takes gradients of very different lengths. Where gradients depend on each other, it is the
    least-squares solution of least length that is taken, in units in which every gradient has length 1, so that
    parallel gradients are as nearly parallel ones; with opposite ones, which have none, all weights are 0.

    Source: Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, Eq. 4.

    Example:
        >>> gramian = torch.tensor([[9.0, 0.0], [0.0, 1.0]]).double()  # three times as long
        >>> IMTLG()(gramian, torch.ones(2).double(), torch.tensor(0))
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """

    scale_free: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    permutes: ClassVar[bool] = True

    def __call__(self, gramian: Tensor, losses: Tensor, draw: Tensor) -> Tensor:
        if not waits(gramian.device):
            return torch.from_numpy(_on_host(on_host(gramian).numpy())).to(gramian)
        seen = gramian.diagonal() > 0
        lengths = torch.where(seen, gramian.diagonal(), 1.0).sqrt()
        unit = torch.where(seen, torch.where(seen, lengths, torch.inf).amin() / lengths, 0.0)
        tolerance = torch.finfo(gramian.dtype).eps ** 0.5
        weights = unit * _pseudo_inverse(gramian / (lengths[:, None] * lengths), tolerance).sum(1)
        total = weights.sum()
        return torch.where(total.abs() > tolerance, weights / total, 0.0)


@np.errstate(all="ignore")
def _on_host(gramian: np.ndarray) -> np.ndarray:
    """Return the weights, by eigenvectors, for which a GPU would have to be waited for."""
    squares = gramian.diagonal()
    seen = squares > 0
    lengths = np.sqrt(np.where(seen, squares, 1.0))
    unit = np.where(seen, np.where(seen, lengths, np.inf).min() / lengths, 0.0)
    cosines = gramian / (lengths[:, None] * lengths)
    if not np.isfinite(cosines).all():
        return np.full(len(gramian), np.nan)
    tolerance = torch.finfo(torch.float64).eps ** 0.5
    values, vectors = np.linalg.eigh(cosines)
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=np.abs(values) > tolerance)
    weights = unit * (vectors @ (inverse * vectors.sum(0)))
    total = weights.sum()
    return weights / total if abs(total) > tolerance else np.zeros_like(weights)


def _pseudo_inverse(matrix: Tensor, tolerance: float) -> Tensor:
    """Return that of a symmetric positive semi-definite matrix, its eigenvalues below the tolerance taken for 0.

    Decompositions wait for the device, so the projector onto the other eigenvectors is made of products: `x / (x + t)`
    of every eigenvalue x, brought to 0 or 1 by `3 x^2 - 2 x^3` time and again (McWeeny, Rev. Mod. Phys. 1960).
    """
    one = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    projector = torch.linalg.solve_ex(matrix + tolerance * one, matrix)[0]
    for _ in range(6):
        projector = (projector + projector.T) / 2
        projector = projector @ projector @ (3 * one - 2 * projector)
    inverse: Tensor = torch.linalg.solve_ex(matrix + one - projector, projector)[0]
    return inverse
