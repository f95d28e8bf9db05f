"""What balancing the tasks' gradients adds to a training step, in time and memory, beside a plain sum and TorchJD."""

from __future__ import annotations

import argparse
import gc
import logging
import random
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from _measure import Estimate, estimate, grown_memory, introduce, judge, ratios, table
from lightning_step import Block
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchjd.aggregation import MGDA, MGDAWeighting, UPGradWeighting
from torchjd.autogram import Engine
from torchjd.autojac import jac_to_grad, mtl_backward

from lightning_uncertainty import MultiTaskMixin, Task, UncertaintyWeighting
from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.weightings import Weighting

TASKS = (2, 3, 10, 40)
ROUNDS = {"pooled": (36, 48, 36, 18), "dense": (72, 72, 36, 30)}  # by features, for each number of tasks
CLASSES = 10
EVERY = 10

Step = Callable[[], object]

PLAIN, AGAIN, SHARED = "plain sum", "plain sum again", "backward of the trunk alone"
MGDA_FEATURES, PCGRAD_FEATURES = '`GradientBalancing("mgda")`', '`GradientBalancing("pcgrad")`'
EXACT = '`on="parameters"`'
SELDOM = f'`on="parameters", every_n_steps={EVERY}`'


def pooled_trunk() -> nn.Sequential:
    """Return the layout of ResNet-18 at half its width, up to 256 pooled features; no first pooling of small images."""
    widths = ((32, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 2))
    blocks = [block for i, o, stride in widths for block in (Block(i, o, stride), Block(o, o, 1))]
    stem = [nn.Conv2d(3, 32, 7, 2, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def dense_trunk() -> nn.Sequential:
    """Return a ResNet of three stages, up to a feature map of 128x8x8."""
    stem = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*stem, Block(32, 32, 1), Block(32, 64, 2), Block(64, 128, 2))


class Problem:
    """A trunk, heads that take turns in regression and classification, and one batch."""

    def __init__(self, features: str, tasks: int) -> None:
        torch.manual_seed(0)
        dense = features == "dense"
        self.trunk = dense_trunk() if dense else pooled_trunk()
        self.heads, self.targets = nn.ModuleDict(), {}
        self.x = torch.randn(8 if dense else 16, 3, 64, 64)
        for i in range(tasks):
            name, classes = f"task_{i}", i % 2 == 1
            outputs = CLASSES if classes else 1
            if dense:
                layers = [nn.Conv2d(128, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, outputs, 1)]
                layers.append(nn.Upsample(scale_factor=8, mode="bilinear"))
            else:
                layers = [nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, outputs)]
            self.heads[name] = nn.Sequential(*layers)
            place = (64, 64) if dense else ()
            labels = torch.randint(CLASSES, (len(self.x), *place)) if classes else None
            self.targets[name] = torch.randn(len(self.x), 1, *place) if labels is None else labels

    def losses(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: (F.mse_loss if target.is_floating_point() else F.cross_entropy)(outputs[name], target)
            for name, target in self.targets.items()
        }

    def step(self, backward: Callable[[Tensor, list[Tensor]], object]) -> Step:
        """Return a step by hand, of which this is the backward, from features and losses."""
        optimizer = torch.optim.Adam([*self.trunk.parameters(), *self.heads.parameters()], lr=1e-4)

        def run() -> None:
            optimizer.zero_grad()
            features = self.trunk(self.x)
            backward(features, list(self.losses({name: head(features) for name, head in self.heads.items()}).values()))
            optimizer.step()

        return run


class Net(MultiTaskMixin, LightningModule):
    """The same model under a weighting."""

    def __init__(self, problem: Problem, weighting: Weighting) -> None:
        super().__init__()
        self.trunk = problem.trunk
        kinds = ("gaussian", "categorical")
        tasks = {name: Task(kinds[i % 2], head=head) for i, (name, head) in enumerate(problem.heads.items())}
        self.register_tasks(tasks, weighting=weighting)


def plain(problem: Problem) -> Step:
    return problem.step(lambda features, losses: torch.stack(losses).sum().backward())


def weighted_by(weighting: Callable[[], Weighting]) -> Callable[[Problem], Step]:
    def build(problem: Problem) -> Step:
        net = Net(problem, weighting())
        optimizer = torch.optim.Adam(net.parameter_groups(lr=1e-4))

        def run() -> None:
            optimizer.zero_grad()
            net.weigh(problem.losses(net.task_outputs(net.trunk(problem.x)))).backward()
            optimizer.step()

        return run

    return build


def by_jacobian(chunk: int | None) -> Callable[[Problem], Step]:
    def build(problem: Problem) -> Step:
        shared, own = list(problem.trunk.parameters()), [list(head.parameters()) for head in problem.heads.values()]
        aggregator = MGDA()

        def backward(features: Tensor, losses: list[Tensor]) -> None:
            mtl_backward(losses, features=features, tasks_params=own, shared_params=shared, parallel_chunk_size=chunk)
            jac_to_grad(shared, aggregator)

        return problem.step(backward)

    return build


def by_engine(problem: Problem) -> Step:
    engine, weighting = Engine(problem.trunk, batch_dim=None), MGDAWeighting()

    def backward(features: Tensor, losses: list[Tensor]) -> None:
        vector = torch.stack(losses)
        vector.backward(weighting(engine.compute_gramian(vector)))

    return problem.step(backward)


class Method(NamedTuple):
    """How a step is built, in which rounds it has a turn, and how many steps that is."""

    build: Callable[[Problem], Step]
    every: int = 1
    steps: int = 1


METHODS = {
    PLAIN: Method(plain),
    AGAIN: Method(plain),
    "`UncertaintyWeighting()`": Method(weighted_by(UncertaintyWeighting)),
    MGDA_FEATURES: Method(weighted_by(lambda: GradientBalancing("mgda"))),
    PCGRAD_FEATURES: Method(weighted_by(lambda: GradientBalancing("pcgrad"))),
    "`GradientBalancing(UPGradWeighting())`, of TorchJD": Method(
        weighted_by(lambda: GradientBalancing(UPGradWeighting()))
    ),
    '`heads="weighted"`': Method(weighted_by(lambda: GradientBalancing("mgda", heads="weighted"))),
    EXACT: Method(weighted_by(lambda: GradientBalancing("mgda", on="parameters")), every=3),
    SELDOM: Method(
        weighted_by(lambda: GradientBalancing("mgda", on="parameters", every_n_steps=EVERY)), every=3, steps=EVERY
    ),
    "TorchJD `mtl_backward`, MGDA, chunks of 1": Method(by_jacobian(1), every=6),
    "TorchJD `mtl_backward`, MGDA, default": Method(by_jacobian(None), every=6),
    "TorchJD autogram `Engine`, MGDA": Method(by_engine, every=6),
}


# -- time --------------------------------------------------------------------------------------------------------------


def milliseconds(run: Step, steps: int = 1) -> float:
    start = time.process_time()
    for _ in range(steps):
        run()
    return 1e3 * (time.process_time() - start) / steps


def backward_of(trunk: nn.Module, x: Tensor) -> float:
    """Return the milliseconds of a backward through the trunk alone."""
    features = trunk(x)
    given = torch.ones_like(features)
    return milliseconds(lambda: torch.autograd.grad(features, list(trunk.parameters()), given))


def measured(features: str, tasks: int, rounds: int) -> dict[str, dict[int, float]]:
    """Return milliseconds of a step, by method and round."""
    samplers: dict[str, tuple[Callable[[], float], int]] = {}
    for name, method in METHODS.items():
        run = method.build(Problem(features, tasks))
        samplers[name] = (lambda run=run, steps=method.steps: milliseconds(run, steps)), method.every
        for _ in range(1 if method.every > 1 else 2):  # to warm up
            run()
        if method.steps > 1:  # and to begin at the first of so many again
            milliseconds(run, method.steps - 1)
    problem = Problem(features, tasks)
    samplers[SHARED] = (lambda: backward_of(problem.trunk, problem.x)), METHODS[EXACT].every
    samples: dict[str, dict[int, float]] = {name: {} for name in samplers}
    chance = random.Random(0)
    gc.collect()
    gc.freeze()
    gc.disable()
    for turn in range(rounds):
        order = [name for name, (_, every) in samplers.items() if turn % every == 0]
        chance.shuffle(order)
        for name in order:
            samples[name][turn] = samplers[name][0]()
        gc.collect()
    gc.enable()
    gc.unfreeze()
    return samples


def same_rounds(own: dict[int, float], other: Mapping[int, float]) -> Estimate:
    """Return the ratio of two methods over the rounds where both had their turn."""
    turns = [turn for turn in own if turn in other]
    return estimate(ratios([own[turn] for turn in turns], [other[turn] for turn in turns]))


# -- memory ------------------------------------------------------------------------------------------------------------


def peak(features: str, tasks: int, name: str) -> float:
    """Return by how many MiB one step lets a process of its own grow, over model, optimizer state and batch."""

    def prepare() -> Callable[[], object]:
        problem = Problem(features, tasks)
        run = METHODS[name].build(problem)
        for _ in range(METHODS[name].steps):  # what is made once; the next step looks at gradients
            run()
        for parameter in [*problem.trunk.parameters(), *problem.heads.parameters()]:
            parameter.grad = None
        return run

    return grown_memory(prepare)


# -- goals -------------------------------------------------------------------------------------------------------------


def time_goal(name: str, tasks: int, samples: Mapping[str, dict[int, float]]) -> tuple[str, Estimate, float] | None:
    """Return what a goal bounds, its measure and the bound, where there is a goal."""
    own = samples[name]
    if name in (MGDA_FEATURES, PCGRAD_FEATURES) and tasks > 2:
        return "/ plain sum", same_rounds(own, samples[PLAIN]), 1.05 if tasks == 3 else 1.1
    if name == SELDOM and tasks == 3:
        return "/ plain sum", same_rounds(own, samples[PLAIN]), 1.15
    if name == EXACT:
        floor = {turn: samples[PLAIN][turn] + (tasks - 1) * shared for turn, shared in samples[SHARED].items()}
        return f"/ floor of {same_rounds(floor, samples[PLAIN]).median:.2f}", same_rounds(own, floor), 1.1
    return None


def report(features: str, tasks: int, rounds: int, peaks: Mapping[str, float]) -> list[str]:
    """Measure times, print a table, and return the goals, each with a word on whether it holds."""
    samples = measured(features, tasks, rounds)
    goals, rows = [], []

    def judged(what: str, measure: Estimate, bound: float) -> None:
        verdict = judge(measure, at_most=bound)
        goals.append(f"{verdict}: {features}, T = {tasks}, {what} {measure.text(3)}, at most {bound}")

    for name, own in samples.items():
        row = [name, f"{estimate(own.values()).median:,.1f}", same_rounds(own, samples[PLAIN]).text(3), str(len(own))]
        goal = time_goal(name, tasks, samples)
        if goal:
            judged(f"{name} {goal[0]}", *goal[1:])
        if name in peaks:
            growth = estimate([peaks[name] / peaks[PLAIN]])
            if name in (MGDA_FEATURES, PCGRAD_FEATURES):
                judged(f"{name}, memory / plain sum", growth, 1.1)
            row += [f"{peaks[name]:,.1f}", f"{growth.median:.3f}"]
        rows.append([*row, *[""] * (6 - len(row))])
    print(f"{features} features, T = {tasks}:\n")
    table(["", "ms / step", "/ plain sum", "rounds", "peak MiB", "/ plain sum"], rows)
    return goals


def main() -> None:
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=TASKS, help="numbers of tasks")
    parser.add_argument("--features", nargs="+", choices=list(ROUNDS), default=list(ROUNDS))
    parser.add_argument("--rounds", type=int, help=f"how many; by default {ROUNDS} for {TASKS} tasks")
    chosen: Any = parser.parse_args()
    introduce("A training step with gradient balancing", ["torch", "pytorch-lightning", "torchjd"])
    print(
        f"Milliseconds of forward, backward and Adam; {SELDOM} is a mean of {EVERY} steps. Methods that take long have "
        "a turn in few rounds; the interval of fewer than 6 is their range. The floor of exact gradients is a plain "
        "step and T - 1 backward passes through the trunk. Peak: how far the resident memory of a process grows in one "
        "step over model, optimizer state and batch.\n"
    )
    settings = [(features, tasks) for tasks in chosen.tasks for features in chosen.features]
    peaks = {setting: {name: peak(*setting, name) for name in METHODS} for setting in settings}  # forks, first of all
    goals: list[str] = []
    for features, tasks in settings:
        rounds = chosen.rounds or dict(zip(TASKS, ROUNDS[features], strict=True)).get(tasks, 12)
        goals += report(features, tasks, rounds, peaks[features, tasks])
    print("Goals:\n\n" + "\n".join(f"- {goal}" for goal in goals) + "\n")


if __name__ == "__main__":
    main()
