import copy
import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torchjd.aggregation as jd
from scipy.optimize import nnls
from torch import nn

from lightning_uncertainty.balancing import IMTLG, MGDA, FrankWolfe, GramianSolver, PCGrad, TorchJDSolver
from lightning_uncertainty.balancing.solvers._min_norm import active_set, between_two
from lightning_uncertainty.balancing.solvers.gramian import SOLVERS, as_solver
from lightning_uncertainty.balancing.solvers.pcgrad import (
    projected,
    projected_on_host,
    random_orders,
    random_orders_on_host,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors.json").read_text(encoding="utf-8"))
JACOBIANS = ["A_conflict2", "B_agree2", "C_three"]
DRAW = torch.tensor(3)
GPU = "lightning_uncertainty.balancing.solvers.{}.waits"
ROOMS = ("mgda", "pcgrad", "imtl_g")


@dataclass(frozen=True)
class Inverse(GramianSolver):
    """Weights in inverse proportion to the lengths: what a user may write."""

    scale_free: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    permutes: ClassVar[bool] = True

    def __call__(self, gramian, losses, draw):
        squares = gramian.diagonal()
        return torch.where(squares > 0, squares.rsqrt(), 0.0)


@dataclass(frozen=True)
class Listed:
    """A solver, and whether it is made to run as on a GPU."""

    name: str
    make: Callable[[], GramianSolver]
    on_gpu: bool = False


OURS = [
    Listed("mgda", MGDA),
    Listed("mgda, gpu", MGDA, on_gpu=True),
    Listed("mgda, l2", lambda: MGDA("l2")),
    Listed("mgda, loss", lambda: MGDA("loss")),
    Listed("mgda, loss+, gpu", lambda: MGDA("loss+"), on_gpu=True),
    Listed("frank_wolfe", FrankWolfe),
    Listed("frank_wolfe, loss+", lambda: FrankWolfe("loss+", 20, 1e-3)),
    Listed("pcgrad", PCGrad),
    Listed("pcgrad, gpu", PCGrad, on_gpu=True),
    Listed("imtl_g", IMTLG),
    Listed("imtl_g, gpu", IMTLG, on_gpu=True),
    Listed("inverse", Inverse),
]
THEIRS = [
    Listed("upgrad", lambda: TorchJDSolver(jd.UPGradWeighting())),
    Listed("dualproj", lambda: TorchJDSolver(jd.DualProjWeighting())),
    Listed("cagrad", lambda: TorchJDSolver(jd.CAGradWeighting(c=0.4))),
    Listed("aligned_mtl", lambda: TorchJDSolver(jd.AlignedMTLWeighting())),
    Listed("fairgrad", lambda: TorchJDSolver(jd.FairGradWeighting(alpha=1.0))),
    Listed("gradvac", lambda: TorchJDSolver(jd.GradVacWeighting())),
    Listed("cr_mogm", lambda: TorchJDSolver(jd.CRMOGMWeighting(jd.UPGradWeighting()))),
    Listed("pcd", lambda: TorchJDSolver(jd.PCDWeighting())),
    Listed("random", lambda: TorchJDSolver(jd.RandomWeighting())),
    Listed("their mgda", lambda: TorchJDSolver(jd.MGDA())),
]
ALL = [*OURS, *THEIRS]


@pytest.fixture
def make(request, monkeypatch):
    listed = request.param
    for room in ROOMS:
        monkeypatch.setattr(GPU.format(room), lambda device: listed.on_gpu)
    return listed.make


every = pytest.mark.parametrize("make", ALL, ids=lambda listed: listed.name, indirect=True)
our_own = pytest.mark.parametrize("make", OURS, ids=lambda listed: listed.name, indirect=True)


def gramian_of(jacobian):
    jacobian = torch.as_tensor(jacobian, dtype=torch.float64)
    return jacobian @ jacobian.T


def draw_jacobian(tasks, features=8, seed=0):
    """Gradients of different lengths that point the same way, more or less."""
    chance = np.random.default_rng(seed)
    return (chance.normal(size=(tasks, features)) + 0.3) * 10 ** chance.uniform(-0.7, 0.7, size=(tasks, 1))


def draw_losses(tasks):
    return torch.linspace(0.5, 2.0, tasks, dtype=torch.float64)


def solve(solver, gramian, draw=DRAW):
    return solver(gramian, draw_losses(len(gramian)), draw)


# -- what holds for all ------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("tasks", [1, 2, 3, 7])
def test_one_finite_weight_for_each_task(make, tasks):
    gramian = gramian_of(draw_jacobian(tasks))
    kept = gramian.clone()
    weights = solve(make(), gramian)
    assert weights.shape == (tasks,)
    assert weights.dtype == torch.float64
    assert weights.isfinite().all()
    assert torch.equal(gramian, kept)


@every
def test_float32(make):
    gramian = gramian_of(draw_jacobian(3))
    weights = make()(gramian.float(), draw_losses(3).float(), DRAW)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.double(), solve(make(), gramian), rtol=1e-2, atol=1e-3)


@every
def test_absent_tasks_have_no_weight_and_are_as_if_they_were_not_there(make):
    smaller = gramian_of(draw_jacobian(2))
    index = torch.tensor([1, 3])
    gramian, losses = torch.zeros(5, 5, dtype=torch.float64), torch.full((5,), 7.0, dtype=torch.float64)
    gramian[index[:, None], index] = smaller
    losses[index] = draw_losses(2)
    weights = make()(gramian, losses, DRAW)
    torch.testing.assert_close(weights[index], solve(make(), smaller), rtol=1e-9, atol=1e-12)
    assert weights[[0, 2, 4]].tolist() == [0.0, 0.0, 0.0]


@every
def test_no_task_present(make):
    assert solve(make(), torch.zeros(3, 3, dtype=torch.float64)).tolist() == [0.0, 0.0, 0.0]


@every
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", [(1, 1), (0, 2), ...])
def test_a_gramian_that_is_not_finite_neither_raises_nor_hangs(make, bad, where):
    gramian = gramian_of(draw_jacobian(3))
    gramian[where] = bad
    assert solve(make(), gramian).shape == (3,)


@every
def test_the_unit_of_the_gradients(make):
    gramian = gramian_of(draw_jacobian(5))
    weights = solve(make(), gramian)
    same = [torch.allclose(solve(make(), k * gramian), weights, rtol=1e-9) for k in (1e-16, 1e-6, 1e9)]
    solver = make()
    assert all(same) is solver.scale_free or isinstance(solver, TorchJDSolver)


@every
def test_what_is_drawn(make):
    gramian = gramian_of(draw_jacobian(5) - 0.5)
    weights = [solve(make(), gramian, torch.tensor(draw)) for draw in (3, 4, 5, 6)]
    solver = make()
    assert torch.equal(weights[0], solve(make(), gramian))
    assert all(torch.equal(weights[0], other) for other in weights) is solver.deterministic or isinstance(
        solver, TorchJDSolver
    )


@every
def test_permutation(make):
    gramian, losses, order = gramian_of(draw_jacobian(5) - 0.5), draw_losses(5), torch.tensor([3, 1, 4, 0, 2])
    weights = make()(gramian, losses, DRAW)
    permuted = make()(gramian[order][:, order], losses[order], DRAW)
    solver = make()
    assert torch.allclose(permuted, weights[order], rtol=1e-9) is solver.permutes or isinstance(solver, TorchJDSolver)


@every
def test_the_state_of_torch_is_left_alone(make):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    solve(make(), gramian_of(draw_jacobian(4)))
    assert torch.equal(torch.rand(3), expected)


@every
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda solver: pickle.loads(pickle.dumps(solver))])
def test_copies(make, copied):
    gramian = gramian_of(draw_jacobian(3))
    assert torch.equal(solve(copied(make()), gramian), solve(make(), gramian))


@every
def test_what_is_remembered_can_be_loaded(make):
    solver, fresh = make(), make()
    for seed in range(3):
        solve(solver, gramian_of(draw_jacobian(3, seed=seed)))
    fresh.load_state(copy.deepcopy(solver.state()))
    gramian = gramian_of(draw_jacobian(3, seed=9))
    assert torch.equal(solve(fresh, gramian), solve(solver, gramian))


@pytest.mark.parametrize("tasks", [2, 3, 10])
@pytest.mark.parametrize("name", ["mgda", "pcgrad", "imtl_g"])
def test_on_a_gpu_the_host_never_waits(monkeypatch, name, tasks):
    """Tensors without values cannot be looked at."""
    for room in ROOMS:
        monkeypatch.setattr(GPU.format(room), lambda device: True)
    gramian = torch.empty(tasks, tasks, dtype=torch.float64, device="meta")
    draw = torch.empty((), dtype=torch.int64, device="meta")
    assert SOLVERS[name]()(gramian, gramian[0], draw).shape == (tasks,)


# -- MGDA --------------------------------------------------------------------------------------------------------------


def scaled(jacobian, chance):
    return jacobian * 10 ** chance.uniform(-3, 3, size=(len(jacobian), 1))


def opposed(jacobian, chance):
    return np.vstack([jacobian[:-1], -chance.uniform(0.1, 10) * jacobian[:1]])


ADVERSARIAL = {
    "plain": lambda jacobian, chance: jacobian,
    "agreeing": lambda jacobian, chance: jacobian + 1.0,
    "scales": scaled,
    "duplicates": lambda jacobian, chance: np.vstack([jacobian[: -(-len(jacobian) // 2)]] * 2)[: len(jacobian)],
    "antiparallel": opposed,
    "rank 2": lambda jacobian, chance: jacobian[:, :2] @ chance.normal(size=(2, jacobian.shape[1])),
    "rank 2, one side": lambda jacobian, chance: np.abs(jacobian[:, :2]) @ chance.normal(size=(2, jacobian.shape[1])),
    "zero rows": lambda jacobian, chance: jacobian * (np.arange(len(jacobian)) % 3 != 1)[:, None],
    "all but dependent": lambda jacobian, chance: jacobian * np.logspace(0, -3, jacobian.shape[1]),
    "all but opposed, scales": lambda jacobian, chance: opposed(scaled(jacobian, chance), chance) + 1e-5,
}


def shortest(jacobian):
    """The convex combination of least length, by scipy's non-negative least squares on the gradients themselves."""
    lengths = np.linalg.norm(jacobian, axis=1)
    seen = lengths > 0
    directions, unit = jacobian[seen] / lengths[seen, None], lengths[seen].min() / lengths[seen]
    y, _ = nnls(np.vstack([directions.T, unit]), np.append(np.zeros(jacobian.shape[1]), 1.0), maxiter=10_000)
    weights = np.zeros(len(jacobian))
    weights[seen] = y * unit
    return weights / weights.sum()


def assert_shortest(weights, jacobian):
    """Within 1e-6 of the least squared length, or within what rounding leaves of the gradients' own."""
    best, weights = shortest(jacobian), weights.numpy()
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1.0)
    least = np.sum((best @ jacobian) ** 2)
    rounding = 1e-13 * (best @ np.linalg.norm(jacobian, axis=1)) ** 2
    assert np.sum((weights @ jacobian) ** 2) <= (1 + 1e-6) * least + rounding


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("tasks", [2, 3, 6, 10, 40])
@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_mgda_is_the_shortest_combination(monkeypatch, kind, tasks, on_gpu):
    monkeypatch.setattr(GPU.format("mgda"), lambda device: on_gpu)
    chance = np.random.default_rng(tasks)
    for features in (max(tasks - 1, 2), tasks + 1, 2 * tasks, 300):
        jacobian = ADVERSARIAL[kind](chance.normal(size=(tasks, features)), chance)
        assert_shortest(solve(MGDA(), gramian_of(jacobian)), jacobian)


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_mgda_is_the_shortest_combination_where_block_pivoting_does_not_end(monkeypatch, kind):
    monkeypatch.setattr("lightning_uncertainty.balancing.solvers._min_norm._EXCHANGES", 0)
    chance = np.random.default_rng(1)
    for tasks in (3, 10, 10, 40):
        jacobian = ADVERSARIAL[kind](chance.normal(size=(tasks, tasks + 2)), chance)
        assert_shortest(solve(MGDA(), gramian_of(jacobian)), jacobian)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("tasks", [2, 3, 10])
def test_mgda_serves_no_task_less_than_its_own_length(monkeypatch, tasks, on_gpu):
    """The optimality condition, <d, g> >= |d|^2, and equality where there is a weight."""
    monkeypatch.setattr(GPU.format("mgda"), lambda device: on_gpu)
    for seed in range(20):
        gramian = gramian_of(draw_jacobian(tasks, 3 * tasks, seed))
        weights = solve(MGDA(), gramian)
        products, square = gramian @ weights, weights @ gramian @ weights
        assert (products >= (1 - 5e-7) * square).all()
        torch.testing.assert_close(products[weights > 0], square.expand((weights > 0).sum()), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_mgda_of_what_is_no_gramian_ends(monkeypatch, on_gpu):
    """Rounding may leave a negative eigenvalue, and here there are large ones."""
    monkeypatch.setattr(GPU.format("mgda"), lambda device: on_gpu)
    chance = torch.Generator().manual_seed(0)
    for trial in range(300):
        matrix = torch.randn(trial % 7 + 1, trial % 7 + 1, generator=chance, dtype=torch.float64)
        matrix = (matrix + matrix.T).round() if trial % 3 == 0 else matrix + matrix.T
        matrix.diagonal().abs_()
        weights = solve(MGDA(), matrix)
        assert (weights >= 0).all()
        assert weights.sum().item() == pytest.approx(1.0 if (matrix.diagonal() > 0).any() else 0.0)


def test_mgda_of_a_system_that_is_singular_to_the_last_digit():
    off = float(np.float64(2 + 1e-14) - 1.0)  # the pivot of its second row is 0
    assert active_set(np.array([[1.0, off], [off, 1.0]])) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("name", JACOBIANS)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_vector_mgda(monkeypatch, name, on_gpu):
    monkeypatch.setattr(GPU.format("mgda"), lambda device: on_gpu)
    vector = VECTORS[f"gram.{name}.mgda"]
    expected, jacobian = vector["expected"], np.array(vector["inputs"]["J"])
    gramian = gramian_of(jacobian)
    weights = solve(MGDA(), gramian)
    assert gramian.tolist() == expected["gramian"]
    assert weights.tolist() == pytest.approx(expected["alpha"], rel=1e-8)
    assert weights.numpy() @ jacobian == pytest.approx(expected["direction"], rel=1e-8, abs=1e-10)
    assert (weights @ gramian @ weights).item() == pytest.approx(expected["min_norm_sq"], rel=1e-8)
    assert solve(FrankWolfe(), gramian).tolist() == pytest.approx(expected["alpha"], abs=1e-3)


@pytest.mark.parametrize("name", JACOBIANS)
@pytest.mark.parametrize("normalisation", ["l2", "loss", "loss+"])
def test_vector_mgda_normalised(name, normalisation):
    vector = VECTORS[f"gram.{name}.mgda_normalised"]
    jacobian, losses = np.array(vector["inputs"]["J"]), torch.tensor(vector["inputs"]["loss"], dtype=torch.float64)
    weights = MGDA(normalisation)(gramian_of(jacobian), losses, DRAW)
    expected = vector["expected"][normalisation]
    assert weights.tolist() == pytest.approx(expected["alpha"], rel=1e-8)
    assert weights.numpy() @ jacobian == pytest.approx(expected["direction_official_raw_losses"], rel=1e-8, abs=1e-10)
    approached = FrankWolfe(normalisation)(gramian_of(jacobian), losses, DRAW)
    assert approached.tolist() == pytest.approx(expected["alpha"], abs=5e-3)


@pytest.mark.parametrize("loss", [0.0, -1.0])
def test_a_task_whose_loss_is_not_positive_is_left_out_of_what_is_divided_by_it(loss):
    gramian = gramian_of(draw_jacobian(3))
    losses = torch.tensor([0.5, loss, 2.0], dtype=torch.float64)
    index = torch.tensor([0, 2])
    for solver in (MGDA("loss"), MGDA("loss+"), FrankWolfe("loss")):
        weights = solver(gramian, losses, DRAW)
        assert weights[1] == 0
        torch.testing.assert_close(weights[index], solver(gramian[index][:, index], losses[index], DRAW))


@pytest.mark.parametrize("pair", [(4.0, 0.0, 1.0), (1.0, 0.5, 4.0), (1.0, 1.5, 4.0), (4.0, 1.5, 1.0), (1.0, -1.0, 1.0)])
def test_two_tasks_in_closed_form(pair):
    first, product, second = pair
    gramian = torch.tensor([[first, product], [product, second]], dtype=torch.float64)
    expected = between_two(first, product, second)
    grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    squares = first * grid**2 + 2 * product * grid * (1 - grid) + second * (1 - grid) ** 2
    assert grid[squares.argmin()].item() == pytest.approx(expected, abs=1e-5)
    for solver in (MGDA(), FrankWolfe(iterations=1)):
        assert solve(solver, gramian).tolist() == pytest.approx([expected, 1 - expected])


def test_frank_wolfe_takes_the_steps_of_torchjds():
    gramian = gramian_of(draw_jacobian(5))
    theirs = jd.MGDAWeighting(epsilon=1e-3, max_iters=30)(gramian)
    torch.testing.assert_close(solve(FrankWolfe(iterations=30, tolerance=1e-3), gramian), theirs)


# -- PCGrad ------------------------------------------------------------------------------------------------------------


def on_host(gramian, orders):
    return torch.from_numpy(projected_on_host(gramian.numpy(), orders.numpy()))


@pytest.mark.parametrize("project", [projected, on_host])
@pytest.mark.parametrize("name", JACOBIANS)
def test_vector_pcgrad(name, project):
    vector = VECTORS[f"gram.{name}.pcgrad"]
    expected, jacobian = vector["expected"], np.array(vector["inputs"]["J"])
    orders = torch.tensor(vector["inputs"]["orders"])
    rows = project(gramian_of(jacobian), orders)
    torch.testing.assert_close(rows, torch.tensor(expected["W"], dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert rows.sum(0).tolist() == pytest.approx(expected["weights"], rel=1e-9)
    assert rows.sum(0).numpy() @ jacobian == pytest.approx(expected["direction"], rel=1e-9)


@pytest.mark.parametrize("project", [projected, on_host])
def test_vector_pcgrad_leaves_a_gradient_out_of_its_own_projections(project):
    vector = VECTORS["pcgrad.self_projection"]
    gramian = gramian_of(vector["inputs"]["J"])
    rows = project(gramian, torch.tensor([vector["inputs"]["order_task0"], [0, 2], [0, 1]]))
    assert rows[0].tolist() == pytest.approx(vector["expected"]["w_after_paper"], rel=1e-9)
    assert (rows[0] @ gramian[0]).item() == pytest.approx(vector["expected"]["dot_with_own_gradient"], rel=1e-9)


@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_pcgrad_is_the_loop_of_the_paper(tasks):
    jacobian = torch.from_numpy(draw_jacobian(tasks, 5) - 0.5)
    for draw in map(torch.tensor, range(5)):
        direction = torch.zeros(5, dtype=torch.float64)
        for own, others in enumerate(random_orders(draw, tasks).tolist()):
            assert sorted([own, *others]) == list(range(tasks))
            gradient = jacobian[own].clone()
            for other in others:
                product = gradient @ jacobian[other]
                if product < 0:
                    gradient -= product / jacobian[other].square().sum() * jacobian[other]
            direction += gradient
        torch.testing.assert_close(solve(PCGrad(), gramian_of(jacobian), draw) @ jacobian, direction)


@pytest.mark.parametrize("tasks", [1, 2, 3, 7, 40])
def test_orders_are_the_same_on_the_host(tasks):
    for draw in (0, 5, -(2**63), 2**63 - 1):
        expected = random_orders(torch.tensor(draw), tasks)
        assert np.array_equal(random_orders_on_host(draw, tasks), expected.numpy())


def test_orders_are_uniform_and_independent():
    trials = 3000
    orders = torch.stack([random_orders(torch.tensor(draw), 4) for draw in range(trials)])
    codes = (orders * torch.tensor([16, 4, 1])).sum(-1)  # [trials, 4]
    counts = torch.stack([torch.bincount(torch.unique(code, return_inverse=True)[1]) for code in codes.T])
    assert counts.shape == (4, 6)
    assert ((counts - trials / 6).abs() < 5 * (trials * 5 / 36) ** 0.5).all()
    pairs = torch.unique(codes[:, 0] * 64 + codes[:, 1], return_counts=True)[1]
    assert len(pairs) == 36
    assert ((pairs - trials / 36).abs() < 5 * (trials / 36) ** 0.5).all()


def test_pcgrad_without_conflict_is_the_sum():
    assert solve(PCGrad(), gramian_of(np.abs(draw_jacobian(4)))).tolist() == [1.0] * 4


# -- IMTL-G ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["host", "gpu"])
def imtl_g(request, monkeypatch):
    monkeypatch.setattr(GPU.format("imtl_g"), lambda device: request.param)
    return IMTLG()


@pytest.mark.parametrize("name", JACOBIANS)
def test_vector_imtl_g(imtl_g, name):
    vector = VECTORS[f"gram.{name}.imtl_g"]
    expected, jacobian = vector["expected"], np.array(vector["inputs"]["J"])
    weights = solve(imtl_g, gramian_of(jacobian))
    assert weights.tolist() == pytest.approx(expected["alpha"], rel=1e-8)
    assert weights.numpy() @ jacobian == pytest.approx(expected["direction"], rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("tasks", [2, 3, 10])
def test_imtl_g_goes_equally_far_along_every_gradient(imtl_g, tasks):
    jacobian = torch.from_numpy(draw_jacobian(tasks, 3 * tasks))
    weights = solve(imtl_g, gramian_of(jacobian))
    steps = (jacobian / jacobian.norm(dim=1, keepdim=True)) @ (weights @ jacobian)
    torch.testing.assert_close(steps, steps.mean().expand(tasks), rtol=1e-7, atol=0.0)
    torch.testing.assert_close(weights, jd.IMTLGWeighting()(gramian_of(jacobian)), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("cosine", [-0.999, -0.5, 0.0, 0.9, 1 - 1e-12, 1.0])
def test_imtl_g_of_two_tasks_does_not_depend_on_their_angle(imtl_g, cosine):
    gramian = torch.tensor([[9.0, 3 * cosine], [3 * cosine, 1.0]], dtype=torch.float64)
    assert solve(imtl_g, gramian).tolist() == pytest.approx([0.25, 0.75], rel=1e-6)


def test_imtl_g_of_opposite_gradients_is_nothing(imtl_g):
    assert solve(imtl_g, gramian_of([[1.0, 2.0], [-2.0, -4.0]])).tolist() == [0.0, 0.0]


def test_imtl_g_turns_round_where_its_own_weights_add_up_to_less_than_nothing(imtl_g):
    """A short gradient between two long ones: as published, and documented."""
    jacobian = torch.tensor([[0.95, 0.0, 0.3], [5.0, 8.7, 0.0], [5.0, -8.7, 0.0]], dtype=torch.float64)
    weights = solve(imtl_g, gramian_of(jacobian))
    steps = (jacobian / jacobian.norm(dim=1, keepdim=True)) @ (weights @ jacobian)
    assert weights.sum().item() == pytest.approx(1.0)
    assert (steps < -0.1).all()
    torch.testing.assert_close(steps, steps.mean().expand(3))


def test_imtl_g_shares_among_duplicates(imtl_g):
    jacobian = draw_jacobian(3, 9)
    weights = solve(imtl_g, gramian_of(np.vstack([jacobian, jacobian[:1]])))
    expected = solve(imtl_g, gramian_of(jacobian))
    torch.testing.assert_close(weights[1:3], expected[1:], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(weights[[0, 3]], expected[[0, 0]] / 2, rtol=1e-6, atol=1e-9)


def test_imtl_g_of_dependent_gradients_is_the_least_squares_solution(imtl_g):
    jacobian = torch.from_numpy(draw_jacobian(6, 3))
    lengths = jacobian.norm(dim=1)
    cosines = gramian_of(jacobian / lengths[:, None])
    expected = torch.linalg.lstsq(cosines, torch.ones(6, 1).double(), driver="gelsd").solution[:, 0] / lengths
    torch.testing.assert_close(solve(imtl_g, gramian_of(jacobian)), expected / expected.sum(), rtol=1e-6, atol=1e-9)


# -- TorchJD -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JACOBIANS)
def test_vectors_through_torchjd(name):
    gramian = gramian_of(VECTORS[f"gram.{name}.mgda"]["inputs"]["J"])

    def expected(method):
        return VECTORS[f"gram.{name}.{method}"]["expected"]

    regularised = {"rel": 2e-3, "abs": 2e-3}  # TorchJD adds 1e-4 of the trace to the diagonal
    upgrad = solve(as_solver(jd.UPGradWeighting()), gramian)
    assert upgrad.tolist() == pytest.approx(expected("upgrad")["weights"], **regularised)
    dualproj = solve(as_solver(jd.DualProjWeighting()), gramian)
    assert dualproj.tolist() == pytest.approx(expected("dualproj")["weights"], **regularised)
    for c in (0.4, 0.8):
        cagrad = solve(as_solver(jd.CAGradWeighting(c)), gramian)
        assert cagrad.tolist() == pytest.approx(expected(f"cagrad.c{c}")["effective_weights"], rel=1e-3, abs=1e-3)
    for mode, weights in expected("aligned_mtl").items():
        aligned = solve(as_solver(jd.AlignedMTLWeighting(scale_mode=mode)), gramian)
        assert aligned.tolist() == pytest.approx(weights["weights_mean"], rel=1e-7)
    if len(gramian) == 2:
        assert upgrad.tolist() == pytest.approx((solve(PCGrad(), gramian) / 2).tolist(), **regularised)


# cvxpy on TorchJD's problem
@pytest.mark.filterwarnings("ignore:.*not DPP:UserWarning")
@pytest.mark.parametrize("name", JACOBIANS)
def test_vector_nash_mtl_through_a_factor_of_the_gramian(name):
    vector = VECTORS[f"gram.{name}.nash"]
    gramian = gramian_of(vector["inputs"]["J"])
    solver = as_solver(jd.NashMTL(n_tasks=len(gramian) + 1))
    direction = solve(solver, gramian).numpy() @ np.array(vector["inputs"]["J"])
    expected = vector["expected"]["direction_clipped_to_norm1"]
    assert direction == pytest.approx(expected, rel=1e-3, abs=1e-3)
    larger = torch.zeros(len(gramian) + 1, len(gramian) + 1, dtype=torch.float64)
    larger[1:, 1:] = gramian
    assert solve(solver, larger)[1:].numpy() @ np.array(vector["inputs"]["J"]) == pytest.approx(expected, abs=1e-3)
    assert solver.state() == {}


def test_vector_fairgrad_and_the_unit_it_has():
    vector = VECTORS["fairgrad.alpha1"]
    gramian = gramian_of(vector["inputs"]["J"])
    solver = TorchJDSolver(jd.FairGradWeighting(alpha=1.0))
    assert solve(solver, gramian).tolist() == pytest.approx(vector["expected"]["weights"], rel=1e-6)
    halved = [weight / 2 for weight in vector["expected"]["weights"]]
    assert solve(solver, 4 * gramian).tolist() == pytest.approx(halved, rel=1e-6)


def test_vector_gradvac_starts_as_pcgrad():
    vector = VECTORS["gradvac"]
    jacobian = np.array(vector["inputs"]["J"])
    solver = TorchJDSolver(jd.GradVacWeighting(beta=vector["inputs"]["beta"]))
    first = vector["expected"]["rows"][0]
    assert solve(solver, gramian_of(jacobian)).numpy() @ jacobian == pytest.approx(first["direction"], rel=1e-6)
    (targets,) = (value for name, value in solver.state()["changed"].items() if name.endswith("_phi_t"))
    assert targets[0, 1].item() == pytest.approx(first["new_target_beta001"], rel=1e-6)


@pytest.mark.parametrize(
    "weighting", [jd.UPGradWeighting, jd.DualProjWeighting, lambda: jd.CAGradWeighting(0.4)], ids=["up", "dual", "ca"]
)
def test_small_gradients_are_not_taken_for_none(weighting):
    """TorchJD takes a Gramian with a trace below 1e-4 for zero; gradients of features are that small."""
    gramian = gramian_of([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    assert not torch.allclose(weighting()(1e-9 * gramian), weighting()(gramian), rtol=1e-2)
    torch.testing.assert_close(solve(TorchJDSolver(weighting()), 1e-9 * gramian), weighting()(gramian))


def test_what_torchjd_draws_is_that_of_the_step():
    solver, gramian = TorchJDSolver(jd.RandomWeighting()), gramian_of(draw_jacobian(3))
    first, second = solve(solver, gramian, torch.tensor(1)), solve(solver, gramian, torch.tensor(2))
    assert not torch.allclose(first, second)
    assert torch.equal(solve(TorchJDSolver(jd.RandomWeighting()), gramian, torch.tensor(1)), first)


def test_their_memory_is_kept():
    solver, inner = (
        TorchJDSolver(jd.CRMOGMWeighting(jd.UPGradWeighting(), alpha=0.9)),
        TorchJDSolver(jd.UPGradWeighting()),
    )
    gramians = [gramian_of(draw_jacobian(3, seed=seed) - 0.5) for seed in range(3)]
    expected = solve(inner, gramians[0])
    for gramian in gramians:
        expected = 0.9 * expected + 0.1 * solve(inner, gramian)
        torch.testing.assert_close(solve(solver, gramian), expected)


def test_their_memory_starts_anew_with_other_tasks():
    first, second = torch.zeros(2, 4, 4, dtype=torch.float64)
    first[:3, :3], second[1:, 1:] = gramian_of(draw_jacobian(3) - 0.5), gramian_of(draw_jacobian(3, seed=5) - 0.5)
    solver, fresh = TorchJDSolver(jd.GradVacWeighting()), TorchJDSolver(jd.GradVacWeighting())
    remembering = [solve(solver, first), solve(solver, first)]
    assert not torch.allclose(*remembering)
    assert torch.equal(solve(solver, second), solve(fresh, second))


def test_settings_by_task_are_those_of_the_tasks_present():
    """Preferences of float32 with a Gramian of float64, too."""
    preference = torch.tensor([0.1, 0.2, 0.3, 0.4])
    gramian = gramian_of(draw_jacobian(4))
    gramian[2] = gramian[:, 2] = 0
    index = torch.tensor([0, 1, 3])
    for weighting in (jd.UPGradWeighting, jd.DualProjWeighting, jd.AlignedMTLWeighting):
        solver = TorchJDSolver(weighting(preference))
        smaller = TorchJDSolver(weighting(preference[index]))
        torch.testing.assert_close(solve(solver, gramian)[index], solve(smaller, gramian[index][:, index]))
        assert torch.equal(solver.weighting.pref_vector, preference)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_as_solver():
    assert as_solver("frank_wolfe") == FrankWolfe()
    assert as_solver(MGDA("l2")) == MGDA("l2")
    assert isinstance(as_solver(jd.UPGrad()).weighting, jd.UPGradWeighting)


@pytest.mark.parametrize("bad", ["nash", MGDA, None])
def test_no_such_solver(bad):
    with pytest.raises(ValueError, match="a solver should be one of mgda, frank_wolfe, pcgrad, imtl_g, a Gram"):
        as_solver(bad)


@pytest.mark.parametrize("bad", [nn.Linear(2, 2), jd.GradDrop()])
def test_no_weighting_of_torchjd(bad):
    with pytest.raises(ValueError, match="should be one of its Weightings"):
        as_solver(bad)


def test_a_weighting_that_needs_more_than_a_gramian():
    for bad in (jd.ExcessMTLWeighting(), jd.CRMOGMWeighting(jd.ExcessMTLWeighting()), jd.ExcessMTL()):
        with pytest.raises(ValueError, match="found ExcessMTLWeighting, which needs the gradients"):
            as_solver(bad)


def test_a_wrong_number_of_weights():
    class Short(jd.Weighting):
        def forward(self, stat):
            return torch.ones(1)

    with pytest.raises(ValueError, match=r"one weight for each of 3 tasks: found shape \[1\] from Short"):
        solve(TorchJDSolver(Short()), gramian_of(draw_jacobian(3)))


def test_no_such_option():
    for solver in (MGDA, FrankWolfe):
        with pytest.raises(ValueError, match="normalisation should be None, 'l2', 'loss' or 'loss\\+': found 'l1'"):
            solver("l1")
    with pytest.raises(ValueError, match="iterations should be at least 1: found 0"):
        FrankWolfe(iterations=0)


def test_without_torchjd(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(ModuleNotFoundError, match=r"TorchJDSolver needs TorchJD: pip install .*\[torchjd\]"):
        TorchJDSolver(nn.Linear(2, 2))
