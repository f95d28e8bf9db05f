"""The multiple-gradient descent algorithm: exact, and as its paper approaches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_uncertainty.balancing.solvers._gramian_solver import GramianSolver, on_host, waits
from lightning_uncertainty.balancing.solvers._min_norm import LARGEST_ENUMERATED, active_set, every_support, frank_wolfe

__all__ = ["MGDA", "FrankWolfe"]

Normalisation = Literal["l2", "loss", "loss+"]


@dataclass(frozen=True)
class MGDA(GramianSolver):
    r"""Take the shortest convex combination of the gradients, exactly.

    .. math::  \min_\alpha \| \sum_i \alpha_i g_i \|^2 = \min_\alpha \alpha^\top G \alpha,
               \qquad \alpha_i \ge 0, \; \sum_i \alpha_i = 1.

    Its optimum :math:`d` has :math:`\langle d, g_i \rangle \ge \|d\|^2` for every task: no first-order change for the
    worse, and :math:`d = 0` where tasks can only trade. Short gradients get large weights, whatever their tasks'
    importance. The optimum is found by an active-set method on the host, in float64; on a GPU with at most ten tasks
    by kernels on all sets of tasks at once, without waiting for the device.

    The normalisations are those of the authors' code, not of the paper: the combination is found for the gradients
    so divided, and its weights are given to the gradients as they are. With two tasks "l2" is therefore the plain
    mean. A task whose loss is not positive has the weight 0 with "loss" and "loss+".

    Source: Désidéri, "Multiple-Gradient Descent Algorithm (MGDA) for Multiobjective Optimization", C. R. Acad. Sci.
    Paris 2012; Sener & Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, Eq. 3.

    Args:
        normalisation: gradients divided by nothing (None), by their length ("l2"), by their loss ("loss"), by both
            ("loss+").

    Raises:
        ValueError: there is no such normalisation.

    Example:
        >>> gramian = torch.tensor([[4.0, 0.0], [0.0, 1.0]]).double()  # at a right angle, one twice as long
        >>> MGDA()(gramian, torch.ones(2).double(), torch.tensor(0))
        tensor([0.2000, 0.8000], dtype=torch.float64)
    """

    normalisation: Normalisation | None = None

    scale_free: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    permutes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_normalisation(self.normalisation)

    @property
    def divides_by_losses(self) -> bool:
        """Whether the weights make sense for positive losses alone."""
        return self.normalisation in ("loss", "loss+")

    def __call__(self, gramian: Tensor, losses: Tensor, draw: Tensor) -> Tensor:
        gramian = _normalised(gramian, losses, self.normalisation)
        if waits(gramian.device) and len(gramian) <= LARGEST_ENUMERATED:
            return every_support(gramian)
        return torch.from_numpy(active_set(on_host(gramian).numpy())).to(gramian)


@dataclass(frozen=True)
class FrankWolfe(GramianSolver):
    r"""Look for MGDA's combination as its paper does: from equal weights, step by step towards the best single task.

    .. math::  t = \arg\min_i (G \alpha)_i, \qquad \alpha \leftarrow (1 - \gamma) \alpha + \gamma e_t,

    with the γ that makes the result shortest, in closed form (Algorithm 1). Two tasks are exact after one step; with
    more the squared length ends above the least one, by per cents with forty tasks, and by orders of magnitude where
    lengths differ a thousandfold. It is here to reproduce others' results; `MGDA` is exact, and faster. The steps run
    on the host.

    Source: Sener & Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, Algorithms 1 and 2;
    Jaggi, "Revisiting Frank-Wolfe", ICML 2013. The numbers are those of the authors' code.

    Args:
        normalisation: see `MGDA`.
        iterations: how many steps at most.
        tolerance: the γ at which they end.

    Raises:
        ValueError: there is no such normalisation, or fewer than one step.

    Example:
        >>> gramian = torch.tensor([[4.0, 0.0], [0.0, 1.0]]).double()
        >>> FrankWolfe()(gramian, torch.ones(2).double(), torch.tensor(0))
        tensor([0.2000, 0.8000], dtype=torch.float64)
    """

    normalisation: Normalisation | None = None
    iterations: int = 250
    tolerance: float = 1e-5

    scale_free: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    permutes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_normalisation(self.normalisation)
        if self.iterations < 1:
            raise ValueError(f"iterations should be at least 1: found {self.iterations}")

    @property
    def divides_by_losses(self) -> bool:
        """Whether the weights make sense for positive losses alone."""
        return self.normalisation in ("loss", "loss+")

    def __call__(self, gramian: Tensor, losses: Tensor, draw: Tensor) -> Tensor:
        normalised = on_host(_normalised(gramian, losses, self.normalisation))
        return torch.from_numpy(frank_wolfe(normalised.numpy(), self.iterations, self.tolerance)).to(gramian)


def _check_normalisation(normalisation: str | None) -> None:
    if normalisation not in (None, "l2", "loss", "loss+"):
        raise ValueError(f"normalisation should be None, 'l2', 'loss' or 'loss+': found {normalisation!r}")


def _normalised(gramian: Tensor, losses: Tensor, normalisation: Normalisation | None) -> Tensor:
    """Return the Gramian of gradients divided by what the normalisation says; rows that cannot be are 0."""
    if normalisation is None:
        return gramian
    by = gramian.diagonal().clamp(min=0.0).sqrt() if normalisation != "loss" else torch.ones_like(losses)
    by = by if normalisation == "l2" else by * losses
    inverse = torch.where(by > 0, 1 / by, 0.0)
    return gramian * inverse[:, None] * inverse
