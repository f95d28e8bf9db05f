"""Weightings that look at the tasks' gradients, and the solvers that weigh these."""

from lightning_uncertainty.balancing.gradient_balancing import GradientBalancing
from lightning_uncertainty.balancing.gradnorm import GradNorm
from lightning_uncertainty.balancing.solvers import (
    IMTLG,
    MGDA,
    SOLVERS,
    FrankWolfe,
    GramianSolver,
    PCGrad,
    TorchJDSolver,
)

__all__ = [
    "IMTLG",
    "MGDA",
    "SOLVERS",
    "FrankWolfe",
    "GradNorm",
    "GradientBalancing",
    "GramianSolver",
    "PCGrad",
    "TorchJDSolver",
]
