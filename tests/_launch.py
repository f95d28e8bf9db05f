"""Programs of several processes: one launch at a time on a machine, of just the cells that the selected tests ask for.

A program is a module with `run(cells)`, which returns what it found, by cell. Each process of a launch calls it with
the same cells, in the launch's own folder; with `PROCESSES` at 1 it starts others itself. A test says which cells it
reads with `@pytest.mark.cells(program, *cells)`, in which `{name}` stands for its parameter of that name, and reads
them with the fixture `found`: `found(cell)`, or `found(cell, rank=1)`.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

ROOT = Path(__file__).parents[1]
RANKS = 2
TIMEOUT = timedelta(seconds=60)  # of a collective: a rank that waits for another fails soon
LOCK = Path(tempfile.gettempdir()) / "lightning-uncertainty-launch.lock"
HERE = "tests._launch"


class Found:
    """What the processes of a launch found, by cell and rank, and the folder in which they ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._saved = functools.cache(lambda rank: torch.load(folder / f"rank{rank}.pt", weights_only=False))

    def __call__(self, cell: str, rank: int = 0) -> Any:
        return self._saved(rank)[cell]


def launch(program: str, cells: list[str], folder: Path) -> Found:
    """Run these cells of a program; fail with what its processes said last when one fails or time is up."""
    (folder / "cells.json").write_text(json.dumps(cells))
    count = getattr(importlib.import_module(program), "PROCESSES", RANKS)
    environments = rank_environments() if count == RANKS else [{}]
    command = [sys.executable, "-W", "ignore", "-m", HERE, program]
    run(command, environments, folder, timeout=120 + 6 * len(cells))
    return Found(folder)


def run(command: list[str], environments: list[dict[str, str]], folder: Path, timeout: float) -> list[str]:
    """Run a command in every environment at once, when no other launch does; return what each process said.

    The time limit counts from then on.
    """
    with FileLock(LOCK, mode=0o666):
        return _run(command, environments, folder, timeout)


def _run(command: list[str], environments: list[dict[str, str]], folder: Path, timeout: float) -> list[str]:
    logs = [folder / f"rank{rank}.log" for rank in range(len(environments))]
    processes = []
    try:
        for environment, log in zip(environments, logs, strict=True):
            whole = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
            with log.open("w") as file:
                options = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True, "cwd": folder}
                processes.append(subprocess.Popen(command, env=whole, **options))
        deadline = time.monotonic() + timeout
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                deadline = min(deadline, time.monotonic() + 2)  # for the others to say the same
            time.sleep(0.05)
        codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.wait()
    said = [log.read_text() for log in logs]
    shown = "\n".join(f"-- rank {rank}, code {codes[rank]}\n{text[-4000:]}" for rank, text in enumerate(said))
    assert not any(code is None or code for code in codes), f"after {timeout:g} s at most\n{shown}"
    return said


def rank_environments() -> list[dict[str, str]]:
    """What torchrun would tell two ranks on this machine, but where they meet: that is a file in their folder."""
    common = {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS), "GROUP_RANK": "0"}
    common |= {"TORCHELASTIC_RUN_ID": "test"}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(RANKS)]


# -- the tests' side ---------------------------------------------------------------------------------------------------


def cells_of(item: pytest.Item) -> tuple[str, list[str]] | None:
    """Return the program and the cells that a test reads, if any."""
    mark = item.get_closest_marker("cells")
    if mark is None:
        return None
    params = item.callspec.params if hasattr(item, "callspec") else {}
    program, *cells = mark.args
    return program, [cell.format(**params) for cell in cells]


def asked(session: pytest.Session, path: Path, program: str) -> list[str]:
    """Return the cells of a program that the selected tests of a file read, each once, in their order."""
    own = [cells_of(item) for item in session.items if item.path == path]
    return list(dict.fromkeys(cell for pair in own if pair and pair[0] == program for cell in pair[1]))


@pytest.fixture(scope="module")
def launches(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """One launch for each program that the tests of a file read cells of."""

    @functools.cache
    def launched(program: str) -> Found:
        cells = asked(request.session, request.path, program)
        return launch(program, cells, tmp_path_factory.mktemp(program.rpartition(".")[2]))

    return launched


@pytest.fixture
def found(request: pytest.FixtureRequest, launches) -> Found:
    """What the launch of the test's program found."""
    program, _ = cells_of(request.node)
    return launches(program)


def main(program: str) -> None:
    """Be one process of a launch."""
    rank, cells = int(os.environ.get("RANK", 0)), json.loads(Path("cells.json").read_text())
    together = "WORLD_SIZE" in os.environ
    if together:
        meeting = {"rank": rank, "world_size": RANKS, "init_method": f"file://{Path('meeting').resolve()}"}
        torch.distributed.init_process_group("gloo", timeout=TIMEOUT, **meeting)
    torch.save(importlib.import_module(program).run(cells), f"rank{rank}.pt")
    if together:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
