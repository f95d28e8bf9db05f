"""All that needs a GPU, in less than six minutes: the tests of `tests/gpu`, and what training steps cost there.

It needs torch, pytorch-lightning, torchmetrics, pytest, hypothesis and numpy where it runs, and installs nothing. Parts
run one after the other, each with a share of the time and what those before it left; one that takes longer is stopped,
with all that it started. A test that hangs, or takes the process with it, costs no other test. What each part says is
in `benchmarks/results/gpu_*.txt` from its first line on, and `gpu.txt` sums up; the exit code is 0 if all went well.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BUDGET = 350.0  # seconds
LAST = 8.0  # seconds of these to stop and to write in
PROCESSES = 8  # at most, of one part's tests
UP = "time was up"
PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "numpy", "pytest", "hypothesis", "triton")
MACHINE = """
import json, torch
there = torch.cuda.is_available()
about = {"GPU": there and torch.cuda.get_device_name(), "GPUs": torch.cuda.device_count(), "CUDA": torch.version.cuda}
if there:
    properties = torch.cuda.get_device_properties(0)
    about |= {"cuDNN": torch.backends.cudnn.version(), "capability": f"{properties.major}.{properties.minor}"}
    about |= {"memory [GiB]": round(properties.total_memory / 2**30), "1 + 1": (torch.ones(1).cuda() + 1).item()}
print("MACHINE " + json.dumps(about))
"""
PYTEST = ("-m", "pytest", "-q", "-rs", "-p", "benchmarks._journal", "-p", "no:cacheprovider", "-p", "no:logging")
LENIENT = ("-W", "default", "--continue-on-collection-errors", "--durations=10")


@dataclass(frozen=True)
class Part:
    """What runs as a process of its own.

    Attributes:
        name: of the part, and its file.
        share: seconds that are its own; it also has what earlier parts left.
        arguments: of Python.
        test_limit: seconds of one test, where it is tests that run.
    """

    name: str
    share: float
    arguments: Sequence[str]
    test_limit: float | None = None

    def command(self) -> str:
        return " ".join(("python", *(f"'{part}'" if " " in part else part for part in self.arguments)))


def tests(name: str, share: float, limit: float, *arguments: str) -> Part:
    return Part(name, share, (*PYTEST, *LENIENT, *arguments), limit)


QUICK = [
    f"tests/gpu/test_{name}.py" for name in ("weightings", "waiting", "models", "training", "instances")
]  # by their worth
PARTS = (
    tests("gpu_tests", 130, 45, "-m", "gpu and not slow", *QUICK),
    tests("gpu_compiled_tests", 80, 100, "-m", "gpu and not slow", "tests/gpu/test_compiled.py"),
    tests("gpu_scenes", 45, 60, "-m", "gpu and not slow", "tests/gpu/test_scenes.py"),
    Part("gpu_step", 45, ("benchmarks/gpu_step.py",)),
    Part("gpu_compiled_step", 40, ("benchmarks/gpu_step.py", "--compiled")),
)


@dataclass
class Outcome:
    """What became of a part: seconds, how it ended, and of its tests, by name, an entry of the journal each."""

    seconds: float = 0.0
    end: str = ""  # empty if well
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_run: list[str] = field(default_factory=list)

    def count(self, outcome: str) -> int:
        return sum(entry["outcome"] == outcome for entry in self.tests.values())

    @property
    def well(self) -> bool:
        return not (self.end or self.not_run or self.count("failed"))

    def text(self) -> str:
        counts = [f"{self.count(word)} {word}" for word in ("passed", "failed", "skipped")] if self.tests else []
        counts += [f"{len(self.not_run)} not run"] if self.not_run else []
        return ", ".join([*counts, *([self.end] if self.end else [])]) or "done"


# -- processes ---------------------------------------------------------------------------------------------------------


def run(
    arguments: Sequence[str],
    output: Path,
    until: float,
    environment: Mapping[str, str],
    stalled: Callable[[], str] = lambda: "",
) -> tuple[int | None, str]:
    """Run Python, its output at the end of a file and on the terminal; stop it when the time has come, or it stalls.

    Returns:
        The exit code, None where it was stopped, and why.
    """
    with output.open("ab") as file:
        shown = file.tell()
        options: Any = {"stdout": file, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "cwd": ROOT}
        process = subprocess.Popen([sys.executable, *arguments], env=environment, start_new_session=True, **options)
        why = ""
        try:
            while process.poll() is None and not why:
                time.sleep(0.1)
                shown = show(output, shown)
                why = stalled() or (UP if time.monotonic() > until else "")
            if why:
                process.send_signal(signal.SIGABRT)  # Python says where it was
                with suppress(subprocess.TimeoutExpired):
                    process.wait(1)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(3)
    show(output, shown)
    return (None if why else process.returncode), why


def show(output: Path, shown: int) -> int:
    """Print what a file has after so many bytes; return how many it has."""
    with output.open("rb") as file:
        file.seek(shown)
        new = file.read()
    sys.stdout.write(new.decode(errors="replace"))
    sys.stdout.flush()
    return shown + len(new)


def environment(**others: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **others}


# -- parts -------------------------------------------------------------------------------------------------------------


def run_part(part: Part, output: Path, until: float, others: Mapping[str, str]) -> Outcome:
    begun = time.monotonic()
    write(output, f"# {part.name}: `{part.command()}`, at most {until - begun:.0f} s\n\n")
    if part.test_limit is None:
        code, why = run(part.arguments, output, until, environment(**others))
        outcome = Outcome(end=why or (f"exit code {code}" if code else ""))
    else:
        with tempfile.TemporaryDirectory() as folder:
            outcome = run_tests(part, output, until, others, Path(folder) / "journal")
    outcome.seconds = time.monotonic() - begun
    write(output, f"\n{part.name}: {outcome.text()}, in {outcome.seconds:.0f} s\n")
    return outcome


def run_tests(part: Part, output: Path, until: float, others: Mapping[str, str], journal: Path) -> Outcome:
    """Run tests, and again those that are left where a test has ended the process or hangs."""
    journal.touch()
    limit = part.test_limit or 0.0

    def stalled() -> str:
        running = entries(journal)[-1:]
        slow = running and "started" in running[0] and time.time() - running[0]["at"] > limit
        return f"{running[0]['started']} took more than {limit:g} s" if slow else ""

    outcome = Outcome()
    for _ in range(PROCESSES):
        before = len(entries(journal))
        code, why = run(part.arguments, output, until, environment(**others, JOURNAL=str(journal)), stalled)
        found = entries(journal)
        outcome.tests = merged(entry for entry in found if "test" in entry)
        lost = [entry["started"] for entry in found if "started" in entry and entry["started"] not in outcome.tests]
        for test in lost:
            text = f"{why or f'the process ended with code {code}'}, while this test ran"
            outcome.tests[test] = {"test": test, "outcome": "failed", "seconds": 0.0, "text": text}
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(outcome.tests[test]) + "\n")
        again = lost or any("stopped" in entry for entry in found[before:])
        if not again or why == UP:
            break
        write(output, f"\n{lost[0] if lost else 'a test'} has ended the process: the others run in a new one\n\n")
    collected = [test for entry in found for test in entry.get("collected", ())]
    outcome.not_run = [test for test in dict.fromkeys(collected) if test not in outcome.tests]
    if why == UP:
        outcome.end = UP
    elif not outcome.tests:
        outcome.end = f"found no test, code {code}"
    elif not lost and code not in (0, 1, 5):
        outcome.end = f"pytest ended with code {code}"
    return outcome


def entries(journal: Path) -> list[dict[str, Any]]:
    lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def merged(found: Any) -> dict[str, dict[str, Any]]:
    """Return an entry for each test: one that failed, if any did, as in its teardown."""
    tests: dict[str, dict[str, Any]] = {}
    for entry in found:
        if entry["test"] not in tests or entry["outcome"] == "failed":
            tests[entry["test"]] = entry
    return tests


# -- what is told ------------------------------------------------------------------------------------------------------


def write(output: Path, text: str) -> None:
    """Add to a file, and print."""
    with output.open("a", encoding="utf-8") as file:
        file.write(text)
    sys.stdout.write(text)
    sys.stdout.flush()


def machine(seconds: float) -> dict[str, Any]:
    """Return what torch says of the GPU, or what went wrong."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", MACHINE], capture_output=True, text=True, timeout=seconds, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return {"no answer of torch in [s]": round(seconds)}
    lines = [line for line in done.stdout.splitlines() if line.startswith("MACHINE ")]
    return json.loads(lines[-1].removeprefix("MACHINE ")) if lines else {"torch fails with": reason(done.stderr)}


def versions() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join([f"Python {sys.version.split()[0]}", *found, f"{os.cpu_count()} CPUs"])


def summary(outcomes: Mapping[Part, Outcome]) -> str:
    """Return tables: of the parts, of what tests measured, and of what went wrong."""
    lines = ["| part | seconds | outcome |", "|---|---:|---|"]
    lines += [f"| `{part.name}` | {one.seconds:.0f} | {one.text()} |" for part, one in outcomes.items()]
    every = [entry for one in outcomes.values() for entry in one.tests.values()]
    measured: dict[str, list[Any]] = {}
    for entry in every:
        for name, value in entry.get("measured", {}).items():
            measured.setdefault(name, []).append(value)
    if measured:
        lines += ["", "| measured by tests | at most |", "|---|---|"]
        for name, values in measured.items():
            numbers = all(isinstance(value, int | float) for value in values)
            lines.append(f"| {name} | {f'{max(values):.3g}' if numbers else '; '.join(map(str, values))} |")
    failed = [entry for entry in every if entry["outcome"] == "failed"]
    if failed:
        lines += ["", f"{len(failed)} failed:", ""]
        lines += [f"- {entry['test']}: {reason(entry['text'])}" for entry in failed]
    not_run = Counter(test.partition("[")[0] for one in outcomes.values() for test in one.not_run)
    if not_run:
        lines += ["", f"{not_run.total()} not run:", "", *(f"- {test}: {count}" for test, count in not_run.items())]
    return "\n".join([*lines, ""])


def reason(text: str) -> str:
    """Return the first line of what pytest marks as an error, or the last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line[1:].strip() for line in lines if line.startswith("E ")]
    return ([*errors, *lines[-1:]] or [""])[0][:200]


# -- all ---------------------------------------------------------------------------------------------------------------


def rehearsed(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Return the parts as they can be tried without a GPU."""
    steps = ("--rehearse",)
    return tuple(part if part.test_limit else Part(part.name, part.share, (*part.arguments, *steps)) for part in parts)


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of all parts together (%(default)g)")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in parts], help="some parts")
    parser.add_argument("--out", type=Path, help="folder of the results (benchmarks/results)")
    parser.add_argument("--dry-run", action="store_true", help="tell what would run")
    parser.add_argument(
        "--rehearse", action="store_true", help="run on the CPU what can, results in a folder of its own"
    )
    chosen = parser.parse_args(arguments)
    parts = [part for part in parts if chosen.only is None or part.name in chosen.only]
    parts = rehearsed(parts) if chosen.rehearse else tuple(parts)
    if chosen.dry_run:
        print(f"{chosen.budget:g} s in all: {versions()}")
        for part in parts:
            print(f"{part.name}: {part.share:g} s of its own: {part.command()}")
        return 0
    found = machine(0.15 * chosen.budget)
    if found.get("GPU") is False and not chosen.rehearse:
        print("There is no GPU, so nothing ran; --rehearse tries what can be tried without.")
        return 1
    others = {"GPU_TESTS_DEVICE": "cpu"} if chosen.rehearse else {}
    folder = chosen.out or (Path(tempfile.mkdtemp()) if chosen.rehearse else RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    about, files = folder / "gpu.txt", {part: folder / f"{part.name}.txt" for part in parts}
    for file in (about, *files.values()):
        file.write_text("", encoding="utf-8")
    told = ", ".join(f"{name} {value}" for name, value in found.items())
    write(about, f"# What ran on a GPU\n\n{versions()}; {told}.\n\n")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to stop what runs, too
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # of a process that is told to abort
    end, outcomes = begun + chosen.budget - LAST, {}
    for place, part in enumerate(parts):
        shares = [later.share for later in parts[place:]]
        until = time.monotonic() + max(end - time.monotonic(), 0.0) * shares[0] / sum(shares)
        outcomes[part] = run_part(part, files[part], max(until, end - sum(shares[1:])), others)
    write(about, f"{summary(outcomes)}\n{time.monotonic() - begun:.0f} s in all, made by `python benchmarks/gpu.py`\n")
    if chosen.out or chosen.rehearse:
        print(f"results are in {folder}")
    return 0 if all(outcome.well for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
