"""Weights `[T]` of the tasks' gradients from their Gramian `[T, T]`, one method a file."""

from lightning_uncertainty.balancing.solvers.gramian import (
    IMTLG,
    MGDA,
    SOLVERS,
    FrankWolfe,
    GramianSolver,
    PCGrad,
    TorchJDSolver,
    as_solver,
)

__all__ = ["IMTLG", "MGDA", "SOLVERS", "FrankWolfe", "GramianSolver", "PCGrad", "TorchJDSolver", "as_solver"]
