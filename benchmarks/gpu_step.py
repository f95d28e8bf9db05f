"""What weighing and balancing add to a training step on a GPU: a ResNet-18 with three heads, and solvers alone."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch._dynamo.utils
from _measure import Estimate, estimate, interleave, introduce, judge, ratios, table
from lightning_step import TASKS, Block, resnet18
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_uncertainty import AnalyticUncertaintyWeighting, MultiTaskMixin, Task, UncertaintyWeighting
from lightning_uncertainty.balancing import SOLVERS, GradientBalancing, GradNorm
from lightning_uncertainty.weightings import DynamicWeightAverage, Weighting

PLAIN, AGAIN, WEIGHED = "plain sum", "plain sum again", "`UncertaintyWeighting()`"
MGDA = '`GradientBalancing("mgda")`'
Make = Callable[[], Weighting] | None
EAGER: dict[str, Make] = {
    PLAIN: None,
    AGAIN: None,
    WEIGHED: UncertaintyWeighting,
    "`AnalyticUncertaintyWeighting()`": AnalyticUncertaintyWeighting,
    "`DynamicWeightAverage()`": DynamicWeightAverage,
    "`GradNorm()`": GradNorm,
    MGDA: lambda: GradientBalancing("mgda"),
    '`GradientBalancing("pcgrad")`': lambda: GradientBalancing("pcgrad"),
    '`GradientBalancing("imtl_g")`': lambda: GradientBalancing("imtl_g"),
    '`on="parameters"`': lambda: GradientBalancing("mgda", on="parameters"),
}
CLAIMS = {WEIGHED: 1.02, MGDA: 1.05}  # of a step, over the plain sum
COMPILED: dict[str, Make] = {PLAIN: None, WEIGHED: UncertaintyWeighting}
MODES = ("default", "reduce-overhead")


class Setting(NamedTuple):
    """Where and how much is measured."""

    device: str
    images: tuple[int, int, int, int]
    steps: int  # in a sample
    compiler: dict[str, Any]


GPU = Setting("cuda", (64, 3, 128, 128), 10, {})
REHEARSAL = Setting("cpu", (4, 3, 16, 16), 1, {"backend": "aot_eager"})


class Plain(LightningModule):
    """A sum of three losses by hand."""

    def __init__(self, trunk: nn.Module, features: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({name: nn.Linear(features, 1) for name in TASKS})

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, target = batch
        features = self.trunk(x)
        return torch.stack([F.mse_loss(head(features), target) for head in self.heads.values()]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class Weighed(MultiTaskMixin, LightningModule):
    """The same model under a weighting."""

    def __init__(self, trunk: nn.Module, features: int, weighting: Weighting) -> None:
        super().__init__()
        self.trunk = trunk
        tasks = {name: Task("gaussian", head=nn.Linear(features, 1)) for name in TASKS}
        self.register_tasks(tasks, weighting=weighting)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        x, target = batch
        outputs = self.task_outputs(self.trunk(x))
        return self.weigh({name: F.mse_loss(output, target) for name, output in outputs.items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameter_groups(lr=1e-4))


def small() -> nn.Sequential:
    """Return the first blocks of a ResNet, which compile in seconds."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, Block(64, 64, 1), Block(64, 128, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Sampler:
    """The microseconds of a training step, by the device's clock and by the host's, which goes on without waiting."""

    def __init__(self, setting: Setting, trunk: nn.Module, features: int, make: Make, mode: str | None = None) -> None:
        torch.manual_seed(0)
        module = Plain(trunk, features) if make is None else Weighed(trunk, features, make())
        self.setting, self.module = setting, module.to(setting.device)
        self.optimizer = module.configure_optimizers()
        shape = setting.images
        self.batch = (torch.randn(shape, device=setting.device), torch.randn(shape[0], 1, device=setting.device))
        options = setting.compiler or {"mode": mode}
        self.step = module.training_step if mode is None else torch.compile(module.training_step, **options)
        self.host: list[float] = []
        if isinstance(module, Weighed):
            module.check_setup()
        for _ in range(3):  # to warm up, and to compile
            self.run()
        if isinstance(module, Weighed):
            module.take_row()  # as where it is logged; steps then need not ask any more whether tasks have started
        for _ in range(3):
            self.run()
        self()
        self.host.clear()

    def run(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.setting.device, torch.bfloat16):
            loss = self.step(self.batch, 0)
        loss.backward()
        self.optimizer.step()

    def __call__(self) -> float:
        first, last = (mark(self.setting.device) for _ in range(2))
        first.record()
        begun = time.perf_counter()
        for _ in range(self.setting.steps):
            self.run()
        self.host.append(1e6 * (time.perf_counter() - begun) / self.setting.steps)
        last.record()
        last.synchronize()
        return 1e3 * first.elapsed_time(last) / self.setting.steps

    def peak(self) -> float:
        """Return by how many MiB a step grows what is allocated."""
        if self.setting.device != "cuda":
            return float("nan")
        self.optimizer.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


class HostEvent:
    """What takes an event's place on the CPU."""

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: HostEvent) -> float:
        return 1e3 * (other.at - self.at)


def mark(device: str) -> Any:
    return torch.cuda.Event(enable_timing=True) if device == "cuda" else HostEvent()


def compare(samplers: dict[str, Sampler], seconds: float) -> None:
    """Print a table, each beside the plain sum."""
    samples = interleave(samplers, seconds)
    peaks = {name: sampler.peak() for name, sampler in samplers.items()}
    rows = []
    for name, own in samples.items():
        ratio = estimate(ratios(own, samples[PLAIN]))
        claim = f"{CLAIMS[name]}: {judge(ratio, at_most=CLAIMS[name])}" if name in CLAIMS else ""
        times = [estimate(own).text(), estimate(samplers[name].host).text(), ratio.text(3)]
        rows.append([name, *times, claim, f"{peaks[name]:,.1f}", f"{peaks[name] / peaks[PLAIN]:.3f}"])
    print(f"{len(samples[PLAIN])} rounds:\n")
    head = ["us / step", "host busy", "/ plain sum", "claim: at most", "peak MiB", "/ plain sum"]
    table([f"{len(TASKS)} tasks", *head], rows)


def eager(setting: Setting, seconds: float) -> None:
    compare({name: Sampler(setting, resnet18(), 512, make) for name, make in EAGER.items()}, seconds)


def compiled(setting: Setting, seconds: float) -> None:
    counters = torch._dynamo.utils.counters
    for mode in (None, *MODES):
        torch._dynamo.reset()
        counters.clear()
        begun = time.perf_counter()
        samplers = {name: Sampler(setting, small(), 128, make, mode) for name, make in COMPILED.items()}
        told = {name: count for name, count in counters["inductor"].items() if "cudagraph" in name}
        took = f"{time.perf_counter() - begun:.0f} s, {counters['stats']['unique_graphs']} graphs, CUDA graphs: {told}"
        print(f'Compiled, mode="{mode}", in {took}; ' if mode else "Not compiled; ", end="")
        compare(samplers, seconds / (1 + len(MODES)))


def solvers(setting: Setting, calls: int = 50) -> None:
    """Print how long a solver takes, from a Gramian on the device to weights there, the host waiting at the end."""
    rows = []
    for name in ("mgda", "pcgrad", "imtl_g"):
        row = [f"`{name}`"]
        for tasks in (2, 3, 10, 11, 40):
            gradients = torch.randn(tasks, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            given = (gradients @ gradients.T, torch.ones(tasks, dtype=torch.float64), torch.tensor(3))
            row.append(solver_time(SOLVERS[name](), [tensor.to(setting.device) for tensor in given], calls).text())
        rows.append(row)
    print("Microseconds of a solver alone, host and device together:\n")
    table(["solver", *(f"T = {tasks}" for tasks in (2, 3, 10, 11, 40))], rows)


def solver_time(solver: Callable[..., Tensor], given: list[Tensor], calls: int) -> Estimate:
    def once() -> float:
        begun = time.perf_counter()
        weights = solver(*given)
        if weights.is_cuda:
            torch.cuda.synchronize()
        return 1e6 * (time.perf_counter() - begun)

    for _ in range(5):
        once()
    return estimate(once() for _ in range(calls))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, help="how long to measure (20, compiled 9)")
    parser.add_argument("--compiled", action="store_true", help="measure what torch.compile makes of a smaller model")
    parser.add_argument("--rehearse", action="store_true", help="try it on the CPU, with small images")
    chosen = parser.parse_args()
    if not (chosen.rehearse or torch.cuda.is_available()):
        parser.exit(1, "this benchmark needs a GPU: found none\n")
    setting = REHEARSAL if chosen.rehearse else GPU
    where = "the CPU, rehearsed" if chosen.rehearse else torch.cuda.get_device_name()
    clock = (
        f"Time of {where} between events around {setting.steps} steps with Adam, of batches {list(setting.images)} in "
        "bfloat16; the host is busy for as long as it takes to put a step into the queue"
    )
    introduce("A training step on a GPU", ["torch", "pytorch-lightning"], clock)
    seconds = chosen.seconds or (0.5 if chosen.rehearse else 9.0 if chosen.compiled else 20.0)
    torch.backends.cudnn.benchmark = True
    if chosen.compiled:
        compiled(setting, seconds)
    else:
        eager(setting, seconds)
        solvers(setting)


if __name__ == "__main__":
    main()
