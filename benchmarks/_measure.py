"""CPU time of small things on a shared machine: interleaved rounds, paired differences, medians with intervals."""

from __future__ import annotations

import argparse
import atexit
import ctypes
import gc
import math
import multiprocessing
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from itertools import accumulate
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)

STAT = Path("/proc/stat")


class Estimate(NamedTuple):
    """A median over rounds and its 95 % interval."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 0) -> str:
        """Return `median [low, high]`."""
        return f"{self.median:,.{digits}f} [{self.low:,.{digits}f}, {self.high:,.{digits}f}]"


def estimate(values: Iterable[float]) -> Estimate:
    """Return the median; its interval lies between order statistics (the sign test's, normal approximation)."""
    ordered = sorted(values)
    n = len(ordered)
    reach = 0.98 * math.sqrt(n)
    low, high = math.floor(n / 2 - reach), math.ceil(n / 2 + reach)
    return Estimate(median(ordered), ordered[max(low, 0)], ordered[min(high, n - 1)])


def differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Return a - b, round by round."""
    return [x - y for x, y in zip(a, b, strict=True)]


def ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Return a / b, round by round; inf where noise has made b negative."""
    return [x / y if y > 0 else math.inf for x, y in zip(a, b, strict=True)]


def per_call(run: Callable[[], object], prepare: Callable[[], object], block: float) -> Callable[[], float]:
    """Return a sampler of the microseconds of one `run()`, over about `block` µs, each after an untimed `prepare()`.

    A fifth of the calls comes first, untimed, so that no sample pays for the caches which another has filled. Runs now
    to find how many calls fill a block.
    """
    clock = time.process_time

    def sample(calls: int) -> float:
        spent = 0.0
        for _ in range(calls):
            prepare()
            start = clock()
            run()
            spent += clock() - start
        return 1e6 * spent / calls

    sample(5)
    calls = max(1, round(block / min(sample(1) for _ in range(5))))

    def warm() -> float:
        sample(math.ceil(calls / 5))
        return sample(calls)

    return warm


def interleave(samplers: Mapping[Key, Callable[[], float]], seconds: float) -> dict[Key, list[float]]:
    """Sample each in turn, in an order drawn anew every round, for this long; return what they gave, by round."""
    samples: dict[Key, list[float]] = {key: [] for key in samplers}
    order, chance = list(samplers), random.Random(0)
    gc.collect()
    gc.freeze()
    gc.disable()
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end or len(samples[order[0]]) < 6:
            chance.shuffle(order)
            for key in order:
                samples[key].append(samplers[key]())
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    return samples


def judge(measured: Estimate, *, at_most: float = math.inf, at_least: float = -math.inf) -> str:
    """Say whether a claim holds: the whole interval must lie within the bounds."""
    if at_least <= measured.low and measured.high <= at_most:
        return "holds"
    if measured.high < at_least or measured.low > at_most:
        return "does not hold"
    return "not resolved"


def begin(
    title: str,
    description: str | None,
    seconds: float,
    packages: Iterable[str],
    clock: str = "CPU time of the process",
) -> float:
    """Introduce a benchmark whose one option is how long to measure; return that."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=seconds, help="how long to measure")
    chosen: float = parser.parse_args().seconds
    introduce(title, packages, clock)
    return chosen


def introduce(title: str, packages: Iterable[str], clock: str = "CPU time of the process") -> None:
    """Set torch up, print a title, the machine, its load and the command; at the end, what others took of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    print(
        f"# {title}\n\n{os.cpu_count()} CPUs ({processor()}), {torch.get_num_threads()} thread, load "
        f"{os.getloadavg()[0]:.2f} before; Python {platform.python_version()}, {versions(packages)}. {clock}, rounds "
        f"in random order, median of same-round differences or ratios [95 % interval]. Made by `{command}` on "
        f"{date.today()} of commit {commit()}.\n",
        flush=True,
    )
    if STAT.exists():
        atexit.register(_conclude, machine_seconds(), own_seconds())


def versions(packages: Iterable[str]) -> str:
    """Return packages with their versions."""
    return ", ".join(f"{name} {version(name)}" for name in packages)


def commit() -> str:
    """Return the commit that this file stands in, and whether something but results was changed since."""

    def git(*asked: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *asked], cwd=Path(__file__).parent, capture_output=True, text=True)

    changed = git("diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)benchmarks/results").returncode
    found = git("rev-parse", "--short=7", "HEAD").stdout.strip()
    return f"{found}{', changed' * bool(changed)}" if found else "no repository"


def processor() -> str:
    """Return the model of the CPU where the system tells it, or its kind."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def machine_seconds() -> tuple[float, float, float]:
    """Return how long all CPUs have been there, at work, and at work for other machines of the same host."""
    ticks = [int(part) for part in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _waiting, irq, soft, stolen = (tick / os.sysconf("SC_CLK_TCK") for tick in ticks)
    return sum(ticks) / os.sysconf("SC_CLK_TCK"), user + nice + system + irq + soft, stolen


def own_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _conclude(before: tuple[float, float, float], own: float) -> None:
    there, busy, stolen = (now - then for now, then in zip(machine_seconds(), before, strict=True))
    others = max(busy - (own_seconds() - own), 0.0)
    print(
        f"Meanwhile other processes took {100 * others / there:.1f} % of the machine's CPU time, and other machines of "
        f"the same host {100 * stolen / there:.1f} %."
    )


def grown_memory(prepare: Callable[[], Callable[[], object]]) -> float:
    """Return by how many MiB a run lets a process of its own grow over what was there before it.

    Args:
        prepare: builds what is measured and makes what is made once, in that process, and returns the run.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_grow, args=(sender, prepare))
    child.start()
    sender.close()
    grown: float = receiver.recv()
    child.join()
    return grown


def _grow(sender: Connection, prepare: Callable[[], Callable[[], object]]) -> None:
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: tensors go back to the system as they are freed
    run = prepare()
    gc.collect()
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    before = status("VmRSS")
    run()
    sender.send((status("VmHWM") - before) / 1024)


def allocated(run: Callable[[], object]) -> int:
    """Return by how many bytes the tensors on the CPU that a run makes exceed, at most, those that were there before.

    What numpy and Python allocate is not among them. Runs differ by a percent: a backward frees on a thread of its own.
    """
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    return max(accumulate((event.nbytes() for event in events if event.name() == "[memory]"), initial=0))


def status(key: str) -> int:
    """Return a number of this process, in KiB where it is of memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; numbers to the right."""
    lines = [f"| {' | '.join(header)} |", f"|---|{'---:|' * (len(header) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(f"{markdown(header, rows)}\n", flush=True)
