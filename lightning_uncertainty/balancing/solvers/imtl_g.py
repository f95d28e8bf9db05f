"""Impartial gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
        matrix = gramian if waits(gramian.device) else on_host(gramian)
        seen = matrix.diagonal() > 0
        lengths = torch.where(seen, matrix.diagonal(), 1.0).sqrt()
        unit = torch.where(seen, torch.where(seen, lengths, torch.inf).amin() / lengths, 0.0)
        cosines = matrix / (lengths[:, None] * lengths)
        rank_tolerance = torch.finfo(matrix.dtype).eps ** 0.5
        inverted = _pseudo_inverse if waits(gramian.device) else _pseudo_inverse_on_host
        weights = unit * inverted(cosines, rank_tolerance).sum(1)
        total = weights.sum()
        return torch.where(total.abs() > rank_tolerance, weights / total, 0.0).to(gramian)


def _pseudo_inverse_on_host(matrix: Tensor, tolerance: float) -> Tensor:
    if not matrix.isfinite().all():
        return matrix
    inverse: Tensor = torch.linalg.pinv(matrix, atol=tolerance, hermitian=True)
    return inverse


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
