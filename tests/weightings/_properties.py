"""Every weighting, once, with what can be said of it; `test_properties.py` proves it of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchjd.scalarization import STCH, UW

from lightning_uncertainty.balancing import GradientBalancing, GradNorm
from lightning_uncertainty.likelihoods import LIKELIHOODS, Likelihood
from lightning_uncertainty.weightings import (
    AnalyticUncertaintyWeighting,
    BoundedUncertaintyWeighting,
    ConstrainedUncertaintyWeighting,
    DynamicTaskPrioritization,
    DynamicWeightAverage,
    FixedWeighting,
    GeometricLossWeighting,
    ImpartialLossWeighting,
    RandomLossWeighting,
    ScalarizerWeighting,
    SmoothTchebycheff,
    SoftOptimalUncertaintyWeighting,
    UncertaintyWeighting,
    Weighted,
    Weighting,
)


@dataclass(frozen=True)
class Listed:
    """A weighting in the list.

    Attributes:
        name: what pytest shows.
        make: returns a new one, not bound; a task named in its arguments is `task0`, which always exists.
        compiles: `torch.compile(fullgraph=True)` takes it.
        permutes: another order of the tasks gives the same result in that order.
        scale_equivariant: a task's weighted gradient does not depend on the unit of its loss: k L has the weight w / k.
    """

    name: str
    make: Callable[[], Weighting]
    compiles: bool = True
    permutes: bool = True
    scale_equivariant: bool = False

    def bind(self, tasks: int | dict[str, Likelihood]) -> Weighting:
        return self.make().bind(make_tasks(tasks) if isinstance(tasks, int) else tasks)


def half_at_one(loss: Tensor) -> Tensor:
    return 1 / (1 + loss)


WEIGHTINGS = [
    Listed("uncertainty", UncertaintyWeighting, scale_equivariant=True),
    Listed("uncertainty, start 0", lambda: UncertaintyWeighting(start=0.0)),
    Listed(
        "uncertainty, one start and base weight",
        lambda: UncertaintyWeighting(start={"task0": 1.5}, base_weights={"task0": 0.3}),
    ),
    Listed("uncertainty, bounds", lambda: UncertaintyWeighting(bounds=(-2.0, 3.0))),
    Listed(
        "uncertainty, one floor and a group of one",
        lambda: UncertaintyWeighting(bounds={"task0": (5.0, float("inf"))}, shared=[["task0"]]),
    ),
    Listed("uncertainty, as published", lambda: UncertaintyWeighting(memory=None), scale_equivariant=True),
    Listed("uncertainty, restart", lambda: UncertaintyWeighting(memory=2, restart=1), scale_equivariant=True),
    Listed("bounded", BoundedUncertaintyWeighting),
    Listed("bounded, start 0 and base weight", lambda: BoundedUncertaintyWeighting(0.0, {"task0": 0.3})),
    Listed("constrained", ConstrainedUncertaintyWeighting),
    Listed(
        "constrained, mean, start and base weight",
        lambda: ConstrainedUncertaintyWeighting(1.5, {"task0": 1.0}, {"task0": 0.3}),
    ),
    Listed("soft optimal", lambda: SoftOptimalUncertaintyWeighting(temperature=20.0)),
    Listed("soft optimal, base weight", lambda: SoftOptimalUncertaintyWeighting(20.0, {"task0": 0.3})),
    Listed("analytic", AnalyticUncertaintyWeighting, scale_equivariant=True),
    Listed("analytic, every batch", lambda: AnalyticUncertaintyWeighting(decay=0.0), scale_equivariant=True),
    Listed(
        "analytic, base weight",
        lambda: AnalyticUncertaintyWeighting(decay=0.5, base_weights={"task0": 4.0}),
        scale_equivariant=True,
    ),
    Listed("fixed", FixedWeighting),
    Listed("fixed, weights", lambda: FixedWeighting({"task0": 0.1})),
    Listed("random", RandomLossWeighting),
    Listed("random, seed and base weight", lambda: RandomLossWeighting(7, {"task0": 0.3})),
    Listed("task prioritization", lambda: DynamicTaskPrioritization(1.0)),
    Listed(
        "task prioritization, base weight, a function, exponents",
        lambda: DynamicTaskPrioritization(half_at_one, {"task0": 2.0}, 0.0, {"task0": 0.3}),
    ),
    Listed("smooth tchebycheff", lambda: SmoothTchebycheff(0.3, nadir_epoch=0), scale_equivariant=True),
    Listed("smooth tchebycheff, preference", lambda: SmoothTchebycheff(2.0, {"task0": 0.3}), scale_equivariant=True),
    Listed("smooth tchebycheff, ideal", lambda: SmoothTchebycheff(5.0, None, {"task0": 0.1}, nadir_epoch=None)),
    Listed("geometric", GeometricLossWeighting),
    Listed("geometric, base weight", lambda: GeometricLossWeighting({"task0": 0.3})),
    Listed("impartial", ImpartialLossWeighting, scale_equivariant=True),
    Listed("impartial, the paper's start", lambda: ImpartialLossWeighting(0.0)),
    Listed("impartial, start and base weight", lambda: ImpartialLossWeighting({"task0": -0.4}, {"task0": 0.3})),
    Listed("dynamic average", DynamicWeightAverage),
    Listed("dynamic average, base weight", lambda: DynamicWeightAverage(0.3, {"task0": 0.3})),
    Listed("gradnorm", GradNorm),
    Listed("gradient balancing", GradientBalancing),
    Listed(
        "gradient balancing, uncertainty before it",
        lambda: GradientBalancing("pcgrad", UncertaintyWeighting(), on="parameters", every_n_steps=2),
        scale_equivariant=True,
    ),
    Listed("scalarizer", lambda: ScalarizerWeighting(STCH(mu=10.0)), compiles=False),
    Listed("scalarizer with parameters", lambda: ScalarizerWeighting(UW), compiles=False),
]


def make_tasks(count: int) -> dict[str, Likelihood]:
    """`count` tasks `task0`, `task1`, ... that go round all likelihoods."""
    kinds = [kind for kind in LIKELIHOODS.values() if not kind.constant]
    return {f"task{i}": kinds[i % len(kinds)]() for i in range(count)}


def draw_losses(count: int, seed: int = 0) -> Tensor:
    """Losses `[count]` over some orders of magnitude."""
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).mul(2).exp()


def everywhere(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool)


def some(count: int, seed: int = 0) -> Tensor:
    """Presence `[count]`: about half, the first always."""
    present = torch.rand(count, generator=torch.Generator().manual_seed(100 + seed)) < 0.5
    present[0] = True
    return present


def train_step(weighting: Weighting, losses: Tensor, present: Tensor, lr: float = 0.1) -> Weighted:
    """One step of training, parameters by plain gradient descent."""
    losses = losses.clone().requires_grad_()
    weighted = weighting(losses, present)
    weighted.total.backward()
    with torch.no_grad():
        for parameter in weighting.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=lr)
                parameter.grad = None
    return weighted


def train(weighting: Weighting, steps: int, seed: int = 0) -> list[Weighted]:
    """Some steps, each of an epoch of its own, with losses that wander and labels that come and go."""
    count, results = len(weighting.tasks), []
    for step in range(seed, seed + steps):
        weighting.start_epoch(step)
        results.append(train_step(weighting, draw_losses(count, step), some(count, step)))
    return results


def vectors(weighting: Weighting) -> dict[str, Tensor]:
    """A copy of all vectors of a weighting."""
    named = [*weighting.named_parameters(), *weighting.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def assert_same(actual: object, expected: object, **tolerances: float) -> None:
    """Equal to the last bit, or within tolerances; NaN equals NaN."""
    torch.testing.assert_close(actual, expected, equal_nan=True, **(tolerances or {"rtol": 0.0, "atol": 0.0}))
