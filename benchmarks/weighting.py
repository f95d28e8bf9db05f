"""What weighing T losses costs over summing them: forward and backward, T scalar losses as leaves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice

import torch
from _measure import Estimate, begin, differences, estimate, interleave, judge, per_call, ratios, table
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchjd.scalarization import UW

from lightning_uncertainty import MultiTaskMixin
from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.weightings import AnalyticUncertaintyWeighting, UncertaintyWeighting, Weighting

TASKS = (2, 3, 10, 40, 100)
MANY = 1000
BLOCK = 8000.0  # µs

PLAIN = "`torch.stack(losses).sum()`"
LEARNT = "`UncertaintyWeighting`"
ANALYTIC = "`AnalyticUncertaintyWeighting`"
MIXIN = "`MultiTaskMixin.weigh`"
TORCHJD = "TorchJD `UW`"
AUTOMATIC = "AutomaticWeightedLoss"
PARAMETERS = "ParameterDict loop"
FIRST = "first step of "
OURS = (LEARNT, ANALYTIC, MIXIN)
AT_MOST = {  # of TorchJD's UW, up to 10 tasks and up to 100
    LEARNT: (1.1, 1.3),
    ANALYTIC: (1.1, 1.5),
    MIXIN: (2.0, 2.75),
}


class AutomaticWeightedLoss(nn.Module):
    """Liebel & Koerner, "Auxiliary Tasks in Multi-task Learning", 2018: one term after the other."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.ones(tasks))

    def forward(self, *losses: Tensor) -> Tensor:
        total = 0
        for i, loss in enumerate(losses):
            total = total + 0.5 / self.p[i] ** 2 * loss + torch.log(1 + self.p[i] ** 2)
        return total


class ParameterLoop(nn.Module):
    """One scalar parameter per task, one term after the other."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.s = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in names})

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        total = 0
        for name, loss in losses.items():
            total = total + 0.5 * torch.exp(-self.s[name]) * loss + 0.5 * self.s[name]
        return total


class Net(MultiTaskMixin, LightningModule):
    """A module that has tasks and nothing else."""


def samplers(tasks: int) -> dict[tuple[str, int], Callable[[], float]]:
    """Return a sampler for every way to make one scalar of this many losses."""
    names = [f"task_{i}" for i in range(tasks)]
    kinds = list(islice(cycle(["gaussian", "laplace", "categorical"]), tasks))
    losses = [torch.rand(()).add(0.5).requires_grad_() for _ in names]
    by_name = dict(zip(names, losses, strict=True))
    present = torch.ones(tasks, dtype=torch.bool)

    def bound(weighting: Weighting) -> Weighting:
        return weighting.bind({name: as_likelihood(kind) for name, kind in zip(names, kinds, strict=True)})

    def registered() -> Net:
        net = Net()
        net.register_tasks(zip(names, kinds, strict=True))
        return net

    learnt, analytic, net = bound(UncertaintyWeighting()), bound(AnalyticUncertaintyWeighting()), registered()
    first, first_net = bound(UncertaintyWeighting()), registered()
    torchjd, automatic, loop = UW(tasks), AutomaticWeightedLoss(tasks), ParameterLoop(names)
    first_net.weigh(by_name).backward()  # its check of the setup is once in a fit, not part of a step
    ways: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        PLAIN: (nn.Module(), lambda: torch.stack(losses).sum()),
        LEARNT: (learnt, lambda: learnt(torch.stack(losses), present).total),
        ANALYTIC: (analytic, lambda: analytic(torch.stack(losses), present).total),
        MIXIN: (net, lambda: net.weigh(by_name)),
        TORCHJD: (torchjd, lambda: torchjd(torch.stack(losses))),
        AUTOMATIC: (automatic, lambda: automatic(*losses)),
        PARAMETERS: (loop, lambda: loop(by_name)),
        FIRST + LEARNT: (first, lambda: first(torch.stack(losses), present).total),
        FIRST + MIXIN: (first_net, lambda: first_net.weigh(by_name)),
    }
    anew = {FIRST + LEARNT: first, FIRST + MIXIN: first_net.task_weighting}

    def sampler(way: str) -> Callable[[], float]:
        module, forward = ways[way]
        parameters = [*losses, *module.parameters()]

        def prepare() -> None:
            for parameter in parameters:
                parameter.grad = None
            if way in anew:
                anew[way].reset_parameters()

        return per_call(lambda: forward().backward(), prepare, BLOCK)

    return {(way, tasks): sampler(way) for way in ways}


def main() -> None:
    seconds = begin("Weighting alone", __doc__, 240.0, ["torch", "pytorch-lightning", "torchjd"])

    everything = {key: sampler for tasks in (*TASKS, MANY) for key, sampler in samplers(tasks).items()}
    ways = list(dict.fromkeys(way for way, _ in everything))
    bounded, many, rest = {}, {}, {}  # rounds apart, so that what no claim needs costs the claims no rounds
    for (way, tasks), sampler in everything.items():
        loop = way in (AUTOMATIC, PARAMETERS) and tasks >= 100
        group = rest if loop or way.startswith(FIRST) else many if tasks == MANY else bounded
        group[way, tasks] = sampler
    rest |= {(PLAIN, tasks): everything[PLAIN, tasks] for tasks in (*TASKS, MANY)}
    parts = ((bounded, 0.7), (many, 0.15), (rest, 0.15))
    runs = [interleave(group, part * seconds) for group, part in parts]
    overheads = {(way, n): differences(own, run[PLAIN, n]) for run in runs for (way, n), own in run.items()}
    plain = {n: own for run in runs[:2] for (way, n), own in run.items() if way == PLAIN}

    columns = (*TASKS, MANY)
    rounds = ", ".join(str(len(next(iter(run.values())))) for run in runs)
    print(
        f"Microseconds over {PLAIN}, forward and backward, by number of tasks; caches warm; {rounds} rounds (T up to "
        f"{TASKS[-1]}; T = {MANY}; first steps, and the loops from T = 100). The first step is the one in which every "
        "log-variance starts from its loss.\n"
    )
    table(
        ["", *(f"T = {tasks}" for tasks in columns)],
        [
            [f"{PLAIN} itself", *(f"{estimate(plain[tasks]).median:,.0f}" for tasks in columns)],
            *([way, *(estimate(overheads[way, tasks]).text() for tasks in columns)] for way in ways[1:]),
        ],
    )

    def claim(what: str, measure: Callable[[str], Estimate], **bound: float) -> list[str]:
        claimed, *others = (measure(way) for way in OURS)
        return [what, f"{claimed.text(2)} {judge(claimed, **bound)}", *(other.text(2) for other in others)]

    def over(way: str, tasks: int, other: str, other_tasks: int) -> Estimate:
        return estimate(ratios(overheads[way, tasks], overheads[other, other_tasks]))

    rows = [claim("T = 100 / T = 2: at most 2.5", lambda way: over(way, 100, way, 2), at_most=2.5)]
    for tasks in TASKS:
        shares = [over(way, tasks, TORCHJD, tasks) for way in OURS]
        bounds = [AT_MOST[way][tasks > 10] for way in OURS]
        judged = [f"{share.text(2)} {judge(share, at_most=most)}" for share, most in zip(shares, bounds, strict=True)]
        rows.append([f"/ {TORCHJD}, T = {tasks}: at most {', '.join(map(str, bounds))}", *judged])
    for other, tasks, least in ((AUTOMATIC, 10, 8), (PARAMETERS, 10, 5), (AUTOMATIC, 40, 30), (PARAMETERS, 40, 20)):
        rows.append(
            claim(
                f"{other} / ours, T = {tasks}: at least {least}",
                lambda way, o=other, t=tasks: over(o, t, way, t),
                at_least=least,
            )
        )
    print(f"Claims as ratios of the overheads over {PLAIN}; where one bound stands there, it is that of {LEARNT}:\n")
    table(["", *OURS], rows)


if __name__ == "__main__":
    main()
