"""Solvers: weights of T tasks from the Gramian of their gradients."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_uncertainty.balancing.solvers._gramian_solver import GramianSolver
from lightning_uncertainty.balancing.solvers.imtl_g import IMTLG
from lightning_uncertainty.balancing.solvers.mgda import MGDA, FrankWolfe
from lightning_uncertainty.balancing.solvers.pcgrad import PCGrad
from lightning_uncertainty.balancing.solvers.torchjd_solver import TorchJDSolver
from lightning_uncertainty.weightings import Weighting

__all__ = ["IMTLG", "MGDA", "SOLVERS", "FrankWolfe", "GramianSolver", "PCGrad", "TorchJDSolver", "as_solver"]

SOLVERS: dict[str, type[GramianSolver]] = {"mgda": MGDA, "frank_wolfe": FrankWolfe, "pcgrad": PCGrad, "imtl_g": IMTLG}
"""Solvers by name."""


def as_solver(solver: str | GramianSolver | Any) -> GramianSolver:
    """Return a solver from its name, from itself, or from any Weighting of TorchJD.

    Raises:
        ValueError: it is none of these.

    Example:
        >>> as_solver("pcgrad")
        PCGrad()
    """
    if isinstance(solver, GramianSolver):
        return solver
    if isinstance(solver, Weighting):
        raise ValueError(
            f"a solver should weigh gradients: found {solver!r}, which weighs losses; give it as weighting=, as in "
            f"GradientBalancing('mgda', {type(solver).__name__}(...))"
        )
    if isinstance(solver, nn.Module):
        return TorchJDSolver(solver)
    if not isinstance(solver, str) or solver not in SOLVERS:
        raise ValueError(
            f"a solver should be one of {', '.join(SOLVERS)}, a GramianSolver or a Weighting of TorchJD: found "
            f"{solver!r}"
        )
    return SOLVERS[solver]()
