"""What it takes to weight T gradients by their Gramian, and how far from the optimum it ends."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from statistics import median

import numpy as np
import torch
import torchjd.aggregation as jd
from _measure import Estimate, begin, estimate, interleave, judge, per_call, ratios, table
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from lightning_uncertainty.balancing import IMTLG, MGDA, FrankWolfe, PCGrad, TorchJDSolver

TASKS = (2, 3, 10, 40)
FEATURES = 256
PROBLEMS = 8
BLOCK = 8000.0  # µs

OURS = "`MGDA`"
EXACT = (OURS, "`FrankWolfe`", "TorchJD `MGDAWeighting`")
THEIRS = {
    OURS: "TorchJD `MGDAWeighting`",
    "`PCGrad`": "TorchJD `PCGradWeighting`",
    "`IMTLG`": "TorchJD `IMTLGWeighting`",
}
KINDS = ("any direction", "agreeing", "lengths 1e-3 to 1e3", "all but dependent")

Solve = Callable[[Tensor], Tensor]


def solvers(tasks: int) -> dict[str, Solve]:
    """Return a function of the Gramian for every solver."""
    losses, draw = torch.ones(tasks, dtype=torch.float64), torch.tensor(1)

    def ours(solver: MGDA | FrankWolfe | PCGrad | IMTLG | TorchJDSolver) -> Solve:
        return lambda gramian: solver(gramian, losses, draw)

    return {
        OURS: ours(MGDA()),
        "`FrankWolfe`": ours(FrankWolfe()),
        "TorchJD `MGDAWeighting`": jd.MGDAWeighting(),
        "`PCGrad`": ours(PCGrad()),
        "TorchJD `PCGradWeighting`": jd.PCGradWeighting(),
        "`IMTLG`": ours(IMTLG()),
        "TorchJD `IMTLGWeighting`": jd.IMTLGWeighting(),
        "`TorchJDSolver(UPGradWeighting())`": ours(TorchJDSolver(jd.UPGradWeighting())),
        "TorchJD `UPGradWeighting`": jd.UPGradWeighting(),
        "`TorchJDSolver(AlignedMTLWeighting())`": ours(TorchJDSolver(jd.AlignedMTLWeighting())),
        "TorchJD `AlignedMTLWeighting`": jd.AlignedMTLWeighting(),
    }


def draw_jacobian(tasks: int, kind: str, seed: int) -> NDArray[np.float64]:
    """Return gradients `[T, FEATURES]`."""
    chance = np.random.default_rng([tasks, KINDS.index(kind), seed])
    jacobian = chance.normal(size=(tasks, FEATURES))
    if kind == "agreeing":
        jacobian += 1.0
    elif kind == "lengths 1e-3 to 1e3":
        jacobian *= 10 ** chance.uniform(-3, 3, size=(tasks, 1))
    elif kind == "all but dependent":
        jacobian[:, tasks:] *= 1e-3
    return jacobian


def least(jacobian: NDArray[np.float64]) -> float:
    """Return the squared length of the shortest convex combination, from the gradients themselves."""
    lengths = np.linalg.norm(jacobian, axis=1)
    unit = lengths.min() / lengths
    rows = np.vstack([(jacobian / lengths[:, None]).T, unit])
    y, _ = nnls(rows, np.append(np.zeros(jacobian.shape[1]), 1.0), maxiter=10_000)
    return float(np.sum((y * unit @ jacobian / (y @ unit)) ** 2))


def gaps(way: str, tasks: int, kind: str) -> list[float]:
    """Return by what share the squared lengths are above the optimum."""
    found = []
    for seed in range(PROBLEMS):
        jacobian = draw_jacobian(tasks, kind, seed)
        weights = solvers(tasks)[way](torch.from_numpy(jacobian @ jacobian.T)).numpy()
        found.append(max(float(np.sum((weights @ jacobian) ** 2)) / least(jacobian) - 1, 0.0))
    return found


def sampler(solve: Solve, tasks: int) -> Callable[[], float]:
    problems = [torch.from_numpy(jacobian @ jacobian.T) for jacobian in _all_problems(tasks)]
    turn = cycle(problems)
    current = [problems[0]]

    def prepare() -> None:
        current[0] = next(turn)

    return per_call(lambda: solve(current[0]), prepare, BLOCK)


def _all_problems(tasks: int) -> list[NDArray[np.float64]]:
    return [draw_jacobian(tasks, kind, seed) for kind in KINDS for seed in range(PROBLEMS)]


def main() -> None:
    seconds = begin("Solvers", __doc__, 60.0, ["torch", "numpy", "torchjd"])
    samplers = {(way, n): sampler(solve, n) for n in TASKS for way, solve in solvers(n).items()}
    samples = interleave(samplers, seconds)
    times = {key: estimate(values) for key, values in samples.items()}
    ways = list(dict.fromkeys(way for way, _ in samplers))

    print(
        "Microseconds for the weights of one Gramian, float64 on the host, by number of tasks; "
        f"{len(samples[OURS, 2])} rounds over {PROBLEMS} problems of each kind of the next table.\n"
    )
    rows = [[way, *(times[way, tasks].text() for tasks in TASKS)] for way in ways]
    table(["", *(f"T = {tasks}" for tasks in TASKS)], rows)

    print(f"Squared length above the least possible: median (worst) of {PROBLEMS} problems.\n")
    found = {(way, kind, n): gaps(way, n, kind) for way in EXACT for kind in KINDS for n in TASKS}
    table(
        ["", *(f"T = {tasks}" for tasks in TASKS)],
        [
            [f"{way}, {kind}", *(f"{median(found[way, kind, n]):.0e} ({max(found[way, kind, n]):.0e})" for n in TASKS)]
            for way in EXACT
            for kind in KINDS
        ],
    )

    worst = max(max(values) for (way, _, _), values in found.items() if way == OURS)
    claims: list[tuple[str, Estimate, float]] = [
        ("µs at T = 3", times[OURS, 3], 100.0),
        ("µs at T = 40", times[OURS, 40], 500.0),
        ("above the optimum, worst", Estimate(worst, worst, worst), 1e-6),
    ]
    claims = [(f"{OURS}: {what}", value, bound) for what, value, bound in claims]
    for ours, theirs in THEIRS.items():
        for n in TASKS:
            share = estimate(ratios(samples[ours, n], samples[theirs, n]))
            claims.append((f"{ours}: of {theirs} at T = {n}", share, 1.0))
    print("Claims:\n")
    table(
        ["", "at most", "measured", ""],
        [
            [what, f"{bound:g}", f"{value.median:.3g} [{value.low:.3g}, {value.high:.3g}]", judge(value, at_most=bound)]
            for what, value, bound in claims
        ],
    )


if __name__ == "__main__":
    main()
