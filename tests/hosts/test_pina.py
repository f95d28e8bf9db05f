"""PINA: conditions of a physical problem, each with a loss of its own; its weightings are pluggable."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from pina import Condition, LabelTensor, Trainer
from pina.domain import CartesianDomain
from pina.equation import Equation
from pina.model import FeedForward
from pina.operator import laplacian
from pina.optim import TorchOptimizer, TorchScheduler
from pina.problem import SpatialProblem
from pina.solver import PINN, CompetitivePhysicsInformedSolver, SelfAdaptivePhysicsInformedSolver
from pina.weighting import ScalarWeighting

from lightning_uncertainty import AdoptLosses, UncertaintyMonitor, UncertaintyWeighting
from lightning_uncertainty.adoption import describe
from lightning_uncertainty.likelihoods import Gaussian
from tests.hosts._fits import HOST_WARNS, QUIET, RANKS, check_rows, check_two_are_as_one, same

pytestmark = HOST_WARNS
ROOT = Path(__file__).parents[2]
TASKS = {"equation": "gaussian", "measured": "gaussian"}
NOISE = {"equation": 1.0, "measured": 0.1}
ONES = {"D": 1.0, "data": 1.0}
NAMED = {  # the ways to name its losses: what it logs is `.item()`
    "logged": ({"equation": "log:D_loss", "measured": "log:data_loss"}, {"follow": True}, None),
    "weights": (
        {"equation": "weight:weighting.values['D']", "measured": "weight:weighting.values['data']"},
        {},
        ONES,
    ),
    "calls": ({"equation": "call:_compute_condition_loss@0", "measured": "call:_compute_condition_loss@1"}, {}, None),
}


POINTS = 64
ROUGH = torch.randn(2, POINTS, 1, generator=torch.Generator().manual_seed(0))  # what no network follows


def equation(points, solution):
    """How far a solution's curvature is from one that is known with noise."""
    x = points["x"].as_subclass(torch.Tensor)
    noise = NOISE["equation"] * ROUGH[0][((x[:, 0] + 1) / 2 * (POINTS - 1)).round().long()]
    return laplacian(solution, points, components=["u"], d=["x"]) + math.pi**2 * torch.sin(math.pi * x) - noise


class Curve(SpatialProblem):
    """A curve of known curvature, measured with noise: u'' = -π² sin(πx)."""

    output_variables = ("u",)
    spatial_domain = CartesianDomain({"x": [-1, 1]})
    domains = {"D": spatial_domain}  # noqa: RUF012 - PINA's way
    x = torch.linspace(-1, 1, POINTS)[:, None]
    u = torch.sin(math.pi * x) + NOISE["measured"] * ROUGH[1]
    conditions = {  # noqa: RUF012
        "D": Condition(domain="D", equation=Equation(equation)),
        "data": Condition(input=LabelTensor(x, ["x"]), target=LabelTensor(u, ["u"])),
    }


def solver(weights=None, optimizer=None, epochs=1):
    torch.manual_seed(0)
    problem = Curve()
    problem.output_variables = list(problem.output_variables)
    problem.discretise_domain(POINTS, "grid", domains=["D"])
    return PINN(
        problem,
        FeedForward(input_dimensions=1, output_dimensions=1, layers=[16, 16]),
        optimizer or TorchOptimizer(torch.optim.Adam, lr=1e-2),
        TorchScheduler(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        weighting=ScalarWeighting(weights) if isinstance(weights, dict) else weights,
    )


def fitted(host, epochs, *callbacks, ckpt_path=None, **options):
    """Return PINA's Trainer after it has trained."""
    batches = {"batch_size": POINTS, "shuffle": False}  # without a batch size PINA has its Trainer log no step
    trainer = Trainer(host, max_epochs=epochs, callbacks=list(callbacks), **{**batches, **QUIET, **options})
    trainer.train(ckpt_path=ckpt_path)
    return trainer


def adopted(steps, *callbacks, named="logged", ckpt_path=None, weighting=None, **options):
    parts, more, weights = NAMED[named]
    adopting = AdoptLosses(TASKS, parts, weighting=weighting, **more)
    return fitted(solver(weights, **options), steps, adopting, *callbacks, ckpt_path=ckpt_path)


def found_rmse(host):
    """Return the root mean square of the residuals of all points, by task."""
    residuals = {}
    for name, task in {"D": "equation", "data": "measured"}.items():
        points = host.problem.discretised_domains["D"] if name == "D" else host.problem.conditions[name].input
        points = points.clone().requires_grad_()
        target = 0 if name == "D" else host.problem.conditions[name].target
        residual = equation(points, host(points)) if name == "D" else host(points) - target
        residuals[task] = float(residual.as_subclass(torch.Tensor).square().mean().sqrt())
    return residuals


@pytest.mark.parametrize("named", NAMED)
def test_sigma_is_the_residual(named):
    monitor = UncertaintyMonitor(table=False)
    host = adopted(600, monitor, named=named, epochs=600).solver
    sigma, rmse = host.sigma(), found_rmse(host)
    print(f"pina, {named}: sigma {sigma}, rmse {rmse}, noise {NOISE}")
    for task in TASKS:
        assert sigma[task] == pytest.approx(rmse[task], rel=0.02)
        assert rmse[task] == pytest.approx(NOISE[task], rel=0.3)
    check_rows(monitor, set(TASKS), set(TASKS))
    assert len(monitor.history.rows) == 600


def one_step(weights=None, *callbacks):
    """Return what one step of unit length changes, by parameter: the gradient."""
    host = solver(weights, TorchOptimizer(torch.optim.SGD, lr=1.0))
    before = {name: value.detach().clone() for name, value in host.model.named_parameters()}
    fitted(host, 1, *callbacks)
    return host, {name: before[name] - value.detach() for name, value in host.model.named_parameters()}


@pytest.mark.parametrize("named", NAMED)
def test_gradients_are_those_of_weights_by_hand(named):
    parts, more, weights = NAMED[named]
    monitor = UncertaintyMonitor(table=False)
    _, ours = one_step(weights, AdoptLosses(TASKS, parts, **more), monitor)
    row = monitor.history.rows[-1]
    _, theirs = one_step({"D": row["weight/equation"], "data": row["weight/measured"]})
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighting", [None, UncertaintyWeighting()])
def test_a_resumed_fit_is_the_same_as_one_that_was_not_interrupted(weighting):
    whole = adopted(6, epochs=6, weighting=weighting)
    adopted(3, epochs=6, weighting=weighting).save_checkpoint("half.ckpt")
    resumed = adopted(6, epochs=6, weighting=weighting, ckpt_path="half.ckpt")
    assert resumed.global_step == whole.global_step == 6
    assert same(resumed.solver, whole.solver)
    assert resumed.solver.sigma() == whole.solver.sigma()


def test_the_host_reads_what_was_written():
    trainer = adopted(2)
    trainer.save_checkpoint("host.ckpt")
    plain = PINN.load_from_checkpoint("host.ckpt", problem=trainer.solver.problem, model=solver().model)
    assert type(plain) is PINN
    assert same(plain.model, trainer.solver.model)
    assert fitted(solver(), 3, ckpt_path="host.ckpt").global_step == 3


def test_describe_finds_what_to_write():
    found = describe(solver(ONES), run=lambda host: fitted(host, 1))  # its solvers need its Trainer
    names = {name for part in found.candidates for name in part.names}
    for parts, _, _ in NAMED.values():
        assert {part for part in parts.values() if not part.startswith("weight:")} <= names
    assert {key for key, why in found.unusable.items() if "follow=True" in why} >= {"D_loss", "data_loss"}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(SelfAdaptivePhysicsInformedSolver, "weights"), (CompetitivePhysicsInformedSolver, "discriminator")],
)
def test_an_opponent_steps_as_it_would_alone(kind, name):
    """It makes the same losses large, under manual optimization, with an optimizer of its own."""

    def made():
        plain = solver()
        still, steps = (TorchOptimizer(torch.optim.SGD, lr=lr) for lr in (0.0, 1e-2))
        return kind(plain.problem, plain.model, **{"optimizer_model": still, f"optimizer_{name}": steps})

    def opponent(host):
        return getattr(host, name)

    parts, more, _ = NAMED["logged"]
    torch.manual_seed(0)
    ours = fitted(made(), 1, AdoptLosses(TASKS, parts, **more)).solver
    torch.manual_seed(0)
    theirs = fitted(made(), 1).solver
    assert all(value > 0 for value in ours.sigma().values())
    assert not same(opponent(theirs), opponent(made()))
    assert same(opponent(ours), opponent(theirs))


def test_lbfgs_is_refused():
    """It evaluates a batch many times a step."""
    with pytest.raises(RuntimeError, match="found the host's LBFGS"):
        adopted(1, optimizer=TorchOptimizer(torch.optim.LBFGS))


# -- ours as one of PINA's own weightings ------------------------------------------------------------------------------


def of_the_guide():
    """Return the weighting that the guide shows."""
    page, shown = (ROOT / "docs/adopt.md").read_text(encoding="utf-8"), {"__name__": __name__}
    [block] = re.findall(r"^```py\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    exec(block, shown)
    return shown["UncertaintyOfConditions"]


UncertaintyOfConditions = of_the_guide()


def test_ours_is_one_of_its_weightings():
    likelihoods = {"D": Gaussian(), "data": Gaussian()}
    ours = fitted(solver(UncertaintyOfConditions(likelihoods)), 5).solver
    theirs = adopted(5).solver
    sigma = ours.weighting.sigma()
    assert list(sigma) == list(likelihoods)
    assert list(sigma.values()) == pytest.approx(list(theirs.sigma().values()), rel=1e-5)
    for one, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_its_weighting_goes_on_where_it_was():
    def made():
        return solver(UncertaintyOfConditions({"D": Gaussian(), "data": Gaussian()}), epochs=6)

    whole = fitted(made(), 6)
    fitted(made(), 3).save_checkpoint("half.ckpt")
    resumed = fitted(made(), 6, ckpt_path="half.ckpt")
    assert same(resumed.solver, whole.solver)


# -- two processes -----------------------------------------------------------------------------------------------------


def run(cells):
    """Be one of two processes."""
    return {cell: shared_fit(strategy=cell, devices=RANKS, batch_size=POINTS // RANKS) for cell in cells}


def shared_fit(**options):
    parts, more, _ = NAMED["logged"]
    host = fitted(solver(epochs=5), 5, AdoptLosses(TASKS, parts, **more), **options).solver
    return {"state": host.model.state_dict(), "sigma": host.sigma()}


@pytest.mark.cells("tests.hosts.test_pina", "ddp")
def test_two_processes_are_as_one(found):
    check_two_are_as_one(found, shared_fit())
