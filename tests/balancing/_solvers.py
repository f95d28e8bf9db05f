"""Solvers for the tests."""

from dataclasses import dataclass

import torch

from lightning_uncertainty.balancing import GramianSolver


@dataclass(frozen=True)
class Inverse(GramianSolver):
    """Levels the norms, α = 1 / |g|: the unit of the gradients matters."""

    scale_free = False
    deterministic = True
    permutes = True

    def __call__(self, gramian, losses, draw):
        norms = gramian.diagonal().sqrt()
        return torch.where(norms > 0, 1 / norms, 0.0)


@dataclass(frozen=True)
class Returns(GramianSolver):
    """Returns what it is told to."""

    weights: tuple[float, ...]
    scale_free = True
    deterministic = True
    permutes = False

    def __call__(self, gramian, losses, draw):
        return torch.tensor(self.weights, dtype=gramian.dtype)
