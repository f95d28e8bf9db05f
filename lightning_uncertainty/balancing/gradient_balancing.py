"""Weights from the Gramian of the tasks' gradients, within one ordinary backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_uncertainty._tensors import reads_values
from lightning_uncertainty.balancing._base import BalancingWeighting, solved
from lightning_uncertainty.balancing.solvers._gramian_solver import GramianSolver
from lightning_uncertainty.balancing.solvers.gramian import SOLVERS, as_solver
from lightning_uncertainty.balancing.step import Step
from lightning_uncertainty.likelihoods import Likelihood
from lightning_uncertainty.weightings import FixedWeighting, Weighted, Weighting
from lightning_uncertainty.weightings.uncertainty import as_weighting

__all__ = ["GradientBalancing"]


class GradientBalancing(BalancingWeighting):
    r"""Balance the tasks' gradients where they meet, by MGDA, PCGrad or any other solver of their Gramian.

    .. math::  g = \sum_i \alpha_i g_i, \qquad \alpha = \mathrm{solver}(G), \quad G_{ij} = \langle g_i, g_j \rangle,

    where :math:`g_i` is the gradient of task `i`'s weighted loss with respect to the shared features, over the global
    batch. The features are split into a branch for each head, so that one backward pass brings all T gradients to one
    place, and g goes on into the trunk: the step costs about what the plain sum does, and optimisation stays
    automatic. The heads get the gradients of their own losses, as in MGDA's algorithm.

    Weights from features are an approximation (MGDA-UB): they bound the balance of the shared parameters' gradients,
    and promise no descent for every task. `on="parameters"` is exact, for a backward pass through the whole model for
    each task, and needs no place where the features are split.

    A `weighting` brings the losses to one scale before: UncertaintyWeighting for the scales, MGDA for the conflicts.

    Source: Sener & Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, Eq. 3 and
    Section 3.3 (MGDA-UB); solvers name their own.

    Args:
        solver: "mgda", "frank_wolfe", "pcgrad", "imtl_g", a `GramianSolver`, or any Weighting of TorchJD.
        weighting: what weighs the losses before; None is their plain sum.
        heads: "unweighted": each head has the gradient of its own loss. "weighted": times its α, for one more backward
            through the heads alone (no more at all with `on="parameters"`).
        on: "features", or "parameters": the gradients of the parameters that `shared_parameters()` of the module
            returns, averaged over ranks before their Gramian is formed.
        every_n_steps: with `on="parameters"`, how often α is solved for; steps in between reuse it in an ordinary
            backward.

    Raises:
        ValueError: there is no such solver, or an option is none of these; (when tasks are registered) the weighting,
            or a solver that divides by the losses, takes no normalised likelihoods; (in backward, on eager CPU) the
            solver returned weights of a wrong shape, or none that are finite.
        RuntimeError: (in training) the features went around `task_outputs` and `split_features`, a graph had a second
            backward, or parameters to balance are sharded.

    Example:
        >>> from pytorch_lightning import LightningModule
        >>> from torch import nn
        >>> from lightning_uncertainty import MultiTaskMixin, Task
        >>> class Net(MultiTaskMixin, LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.trunk = nn.Linear(4, 8)
        ...         tasks = {name: Task("gaussian", head=nn.Linear(8, 1)) for name in ("depth", "height")}
        ...         self.register_tasks(tasks, weighting=GradientBalancing("mgda"))
        >>> net = Net()
        >>> batch = {"depth": torch.ones(2, 1), "height": -torch.ones(2, 1)}
        >>> net.task_step(net.trunk(torch.ones(2, 4)), batch, "train").backward()
        >>> round(net.task_weighting.balance.sum().item(), 4)  # a convex combination
        1.0
    """

    closed_form = False
    takes_normalised = True
    takes_constant = True
    aside: Tensor  # where a term is constant
    balance: Tensor
    steps: Tensor

    def __init__(
        self,
        solver: str | GramianSolver | Any = "mgda",
        weighting: Weighting | None = None,
        *,
        heads: Literal["unweighted", "weighted"] = "unweighted",
        on: Literal["features", "parameters"] = "features",
        every_n_steps: int = 1,
    ) -> None:
        known = {"heads": ("unweighted", "weighted"), "on": ("features", "parameters")}
        for name, value in (("heads", heads), ("on", on)):
            if value not in known[name]:
                raise ValueError(f"{name} should be {' or '.join(map(repr, known[name]))}: found {value!r}")
        if every_n_steps < 1 or (every_n_steps > 1 and on == "features"):
            raise ValueError(
                f"every_n_steps should be at least 1, and 1 with on='features', where solving costs next to nothing: "
                f"found {every_n_steps} with on={on!r}"
            )
        weighting = FixedWeighting() if weighting is None else as_weighting(weighting)
        if isinstance(weighting, BalancingWeighting):
            raise ValueError(
                f"a weighting within GradientBalancing should weigh losses, not gradients: found {weighting!r}; give "
                "one of the two"
            )
        solver = as_solver(solver)
        named = None if isinstance(weighting, FixedWeighting) and not weighting.extra_repr() else weighting
        super().__init__(
            solver=solver,
            weighting=named,
            heads=None if heads == "unweighted" else heads,
            on=None if on == "features" else on,
            every_n_steps=None if every_n_steps == 1 else every_n_steps,
        )
        self.solver, self.weighting = solver, weighting
        self.heads, self.on, self.every_n_steps = heads, on, every_n_steps
        self.needs_epoch = weighting.needs_epoch
        self._step: int | None = None  # steps[0], where it has been read

    # -- as any weighting ----------------------------------------------------------------------------------------------

    def bind(self, tasks: Mapping[str, Likelihood]) -> GradientBalancing:
        normalised = [name for name, kind in tasks.items() if kind.normalised and not kind.constant]
        if normalised and self.solver.divides_by_losses:
            raise ValueError(
                f"tasks should have positive losses where gradients are divided by them: found normalised likelihoods "
                f"of {', '.join(normalised)} for {self.solver!r}; take another normalisation"
            )
        self.weighting.bind(tasks)
        return super().bind(tasks)

    def make_vectors(self) -> None:
        if self.constant:
            self.add_constant("aside", (float(name in self.constant) for name in self.tasks))
        self.register_buffer("balance", self.vector())  # α of each task's latest gradient
        self.register_buffer("steps", self.vector(torch.int64))  # one number, but every vector is by task
        if self.weighting.log_variance is not None:
            self.register_buffer("log_variance", self.vector())

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.weighting.reset_parameters()
        self.balance.fill_(1.0)
        self.steps.zero_()
        self._step = None

    def weigh(self, losses: Tensor, present: Tensor) -> Weighted:
        weighted: Weighted = self.weighting(losses, present)
        return weighted

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def rename(self, renamed: Mapping[str, str]) -> None:
        super().rename(renamed)
        self.weighting.rename(renamed)

    def check_tasks(self) -> None:
        self.weighting.check_tasks()
        super().check_tasks()

    def settle(self) -> None:
        self.weighting.settle()

    def start_epoch(self, epoch: int) -> None:
        self.weighting.start_epoch(epoch)

    def observe(self, kpi: Tensor) -> None:
        self.weighting.observe(kpi)

    def count_labels(self, labels: Tensor) -> None:
        self.weighting.count_labels(labels)

    def kpi_metrics(self) -> Mapping[str, Metric]:
        return self.weighting.kpi_metrics()

    def hearing(self, kpi: Tensor) -> AbstractContextManager[None]:
        return self.weighting.hearing(kpi)

    def optimum(self, losses: Tensor, steps: Tensor | None = None) -> Tensor | None:
        return self.weighting.optimum(losses, steps)

    def meanings(self) -> dict[str, str]:
        return self.weighting.meanings()

    def powers(self) -> list[float]:
        return self.weighting.powers()

    def trunk_weights(self, weights: Tensor) -> Tensor:
        return weights * self.balance.to(weights)

    # -- gradients -----------------------------------------------------------------------------------------------------

    def due(self) -> bool:
        """Whether α is to be solved for in the step that comes."""
        if self._step is None:
            self._step = int(self.steps[0])
        return self._step % self.every_n_steps == 0

    def begin(self, step: Step) -> None:
        self.steps.add_(1)  # += would register the buffer anew
        self._step = None if self._step is None else self._step + 1

    def known(self) -> Tensor:
        return self.balance.clone()

    @torch.no_grad()
    def take_gramian(self, gramian: Tensor, step: Step) -> Tensor:
        found = solved(self.solver, gramian, step, self.steps[0], self.aside if self.constant else None)
        sound = gramian.isfinite().all()
        self._check(found, sound)
        seen = gramian.diagonal() > 0
        weights = torch.where(sound, found, self.balance.to(found))
        self.balance.copy_(torch.where(seen, weights, self.balance))
        return weights

    def _check(self, weights: Tensor, sound: Tensor) -> None:
        """Look at what a solver returned.

        Raises:
            ValueError: there is not one weight for each task, or, on eager CPU, one is not finite.
        """
        if weights.shape != (len(self.tasks),):
            raise ValueError(
                f"a solver should return one weight for each of {len(self.tasks)} tasks: found shape "
                f"{list(weights.shape)} from {self.solver!r}; mend it, or take one of {', '.join(SOLVERS)}"
            )
        if reads_values(weights) and sound and not weights.isfinite().all():
            raise ValueError(
                f"a solver should return finite weights: found {weights.tolist()} from {self.solver!r}; mend it, or "
                f"take one of {', '.join(SOLVERS)}"
            )

    def foreign_state(self) -> dict[str, Any] | None:
        """Return what the solver remembers; None where it is of a kind that never does."""
        return None if type(self.solver).state is GramianSolver.state else {"solver": self.solver.state()}

    def take_foreign_state(self, state: Any, saved: tuple[str, ...]) -> None:
        """Have the solver remember, which knows tasks by position, if these are ours in our order."""
        if "solver" in state and saved == self.tasks:
            self.solver.load_state(state["solver"])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._step = None  # the checkpoint tells
        super()._load_from_state_dict(state_dict, prefix, *args)
