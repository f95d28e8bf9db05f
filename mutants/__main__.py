"""Run the tests on copies of the project with one fault at a time: in each, one of the tests named must fail."""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from mutants.faults import FAULTS, Fault

ROOT = Path(__file__).parents[1]
PACKAGE = "lightning_uncertainty"
MARKS = "smoke or not (slow or multiprocess or matrix)"  # those of the fast tests
PRELOADED = ("torch", "pytorch_lightning", "torchmetrics", "pytest")  # once, for all that is forked
LIMIT = 300.0  # seconds that a fault may take
PATIENCE = 10.0  # seconds in which what is interrupted may end by itself
TAIL = 25  # lines of a log that are shown


class Outcome(NamedTuple):
    """What the tests of a fault came to; an error is no verdict on the fault."""

    verdict: str
    seconds: float
    log: str


def problems(root: Path, faults: Sequence[Fault]) -> list[str]:
    """Return what is wrong with a list of faults: texts that are not there once, tests that are nowhere, twins."""
    names = [fault.name for fault in faults]
    wrong = [f"{name}: the name is there twice" for name in sorted({name for name in names if names.count(name) > 1})]
    for fault in faults:
        path = root / PACKAGE / fault.file
        found = path.read_text(encoding="utf-8").count(fault.old) if path.is_file() else 0
        if found != 1:
            wrong.append(f"{fault.name}: the old text should be in {fault.file} once: found {found}")
        if fault.old == fault.new:
            wrong.append(f"{fault.name}: the new text is the old one")
        wrong += [f"{fault.name}: there is no {test}" for test in fault.tests if not _exists(root, test)]
        if not fault.tests:
            wrong.append(f"{fault.name}: no test is named")
    return wrong


def _exists(root: Path, test: str) -> bool:
    file, _, name = test.partition("::")
    path = root / file
    return path.is_file() and f"def {name.partition('[')[0]}" in path.read_text(encoding="utf-8")


def copied(root: Path, folder: Path) -> Path:
    """Copy the files that git knows or would add; nothing that is ignored, so no compiled modules."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=root, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():  # git still lists what was deleted a moment ago
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, folder / name)
    return folder


def _child(copy: Path, log: Path, arguments: list[str]) -> None:
    """Run pytest within a copy, in a process group of its own, and end with its exit code."""
    os.setpgid(0, 0)
    code = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        early = [name for name in sys.modules if name.partition(".")[0] == PACKAGE]
        assert not early, f"imported before the fork: {early}"
        os.chdir(copy)
        os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}  # for processes of the tests
        sys.dont_write_bytecode = True
        sys.path[:] = [str(copy), *(path for path in sys.path if Path(path).resolve() != ROOT)]
        found = importlib.import_module(PACKAGE).__file__
        assert Path(str(found)).is_relative_to(copy), f"imported from elsewhere: {found}"
        code = int(importlib.import_module("pytest").main(arguments))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # threads that a test left would be waited for


class _Run:
    """The tests of one fault, in a process that has the fault's copy to itself until it ends."""

    def __init__(self, fault: Fault, copy: Path, marks: str, limit: float) -> None:
        self.fault, self.copy, self.limit = fault, copy, limit
        self.started, self.timed_out = time.monotonic(), False
        self.path = copy / PACKAGE / fault.file if fault.file else None
        self.text = ""
        if self.path is not None:
            self.text = self.path.read_text(encoding="utf-8")
            self.path.write_text(self.text.replace(fault.old, fault.new), encoding="utf-8")
        self.log = copy.with_suffix(".log")
        arguments = ["-q", "-x", "-p", "no:cacheprovider", f"--basetemp={copy.with_suffix('.tmp')}", *fault.tests]
        if not fault.whole:
            arguments += ["-m", marks]
        process = multiprocessing.get_context("fork").Process(target=_child, args=(copy, self.log, arguments))
        process.start()
        self.process: Any = process

    def ended(self) -> bool:
        """Whether it is over; by its limit it is interrupted, then killed, with all processes of its group."""
        self.timed_out |= self.process.is_alive() and time.monotonic() - self.started > self.limit
        if self.timed_out:
            self.stop()
        return not self.process.is_alive()

    def stop(self) -> None:
        for number in (signal.SIGINT, signal.SIGKILL):  # first let tests end the processes of other groups
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            self.process.join(PATIENCE)

    def outcome(self) -> Outcome:
        """Take the fault out of the copy and say what became of it; pytest's code 1 alone says that a test failed."""
        if self.path is not None:
            self.path.write_text(self.text, encoding="utf-8")
        code = self.process.exitcode
        verdict = {0: "survived", 1: "killed"}.get(code, f"error {code}")
        log = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        seconds = time.monotonic() - self.started
        return Outcome("killed, timed out" if self.timed_out else verdict, seconds, log)


def outcomes(
    faults: Sequence[Fault], copies: Sequence[Path], marks: str, limit: float
) -> Iterator[tuple[Fault, Outcome]]:
    """Yield what becomes of every fault, in the order in which they end; as many run at once as there are copies."""
    waiting, free, running = list(faults), list(copies), list[_Run]()
    try:
        while waiting or running:
            while waiting and free:
                running.append(_Run(waiting.pop(0), free.pop(), marks, limit))
            wait([run.process.sentinel for run in running], timeout=0.5)
            for run in [run for run in running if run.ended()]:
                running.remove(run)
                yield run.fault, run.outcome()
                free.append(run.copy)
    finally:
        for run in running:
            run.stop()


def unfaulted(faults: Sequence[Fault]) -> list[Fault]:
    """Return rows without a fault, of all tests that faults name: those of the fast ones, and the others."""
    parts = {"no fault": [fault for fault in faults if not fault.whole]}
    parts["no fault, whole suite"] = [fault for fault in faults if fault.whole]
    tests = {name: dict.fromkeys(test for fault in part for test in fault.tests) for name, part in parts.items()}
    return [Fault(name, "", "", "", tuple(tests[name]), part[0].whole) for name, part in parts.items() if part]


def _show(fault: Fault, outcome: Outcome, sound: bool) -> None:
    print(f"{fault.name:<44} {outcome.verdict:<20} {outcome.seconds:6.1f}", flush=True)
    if not sound and outcome.log:
        print("".join(f"    | {line}\n" for line in outcome.log.splitlines()[-TAIL:]), end="", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the faults; return 0 if all tests pass without one and every fault is killed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="how many faults run at once, each in a copy of its own")
    parser.add_argument("-k", default="", metavar="NAME", help="only faults with this in their name")
    parser.add_argument("-m", default=MARKS, metavar="EXPR", help=f"tests that run, by their marks: {MARKS}")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for a fault; one that hangs is killed")
    given = parser.parse_args(arguments)
    faults = [fault for fault in FAULTS if given.k in fault.name]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="mutants-") as made:
        folder = Path(made).resolve()
        copies = [copied(ROOT, folder / "copy0")]
        wrong = problems(copies[0], faults)
        if wrong or not faults:
            print("\n".join(wrong or [f"there is no fault with {given.k!r} in its name"]))
            return 1
        copies += [shutil.copytree(copies[0], folder / f"copy{i}") for i in range(1, given.jobs)]
        for name in PRELOADED:
            importlib.import_module(name)
        assert threading.active_count() == 1, "a thread would be missing in what is forked"
        for row, outcome in outcomes(unfaulted(faults), copies, given.m, LIMIT * len(faults)):
            passed = outcome.verdict == "survived"
            _show(row, outcome._replace(verdict="passed" if passed else "failed"), passed)
            if not passed:
                return 1
        survivors = []
        for fault, outcome in outcomes(faults, copies, given.m, given.limit):
            killed = outcome.verdict.startswith("killed")
            _show(fault, outcome, killed)
            survivors += [] if killed else [fault.name]
    print(f"{len(faults) - len(survivors)} of {len(faults)} faults killed" + "".join(f"\n- {n}" for n in survivors))
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
