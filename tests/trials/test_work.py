"""Processes that share a folder, some of which are killed: every trial is fitted to its end once."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress

import pytest

from tests._launch import ROOT
from tests._launch import run as run_together

PROGRAM = [sys.executable, "-W", "ignore", "-m", "tests.trials._worker"]
ALL = Counter(
    f"{name} {seed}"
    for name in ("AnalyticUncertaintyWeighting", "FixedWeighting", "UncertaintyWeighting")
    for seed in (0, 1, 2)
)
pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(1500)]


def noted(folder, file):
    """Fits by weighting and seed that began or ended, and of which process."""
    path = folder / f"{file}.txt"
    lines = [line.rsplit(" ", 1) for line in path.read_text().splitlines()] if path.exists() else []
    return Counter(fit for fit, _ in lines), [int(process) for _, process in lines]


@contextmanager
def started(folder, *options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "killed.log").open("w") as log:
        process = subprocess.Popen(
            [*PROGRAM, str(folder), *options],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def work(folder, count=1):
    """Run whole workers; return what each printed."""
    return run_together([*PROGRAM, str(folder)], [{}] * count, folder, timeout=180)


def test_two_workers_from_an_empty_folder_fit_every_trial_once(tmp_path):
    said = work(tmp_path, 2)
    assert noted(tmp_path, "begun")[0] == noted(tmp_path, "ended")[0] == ALL
    assert len(set(noted(tmp_path, "ended")[1])) == 2  # they shared the work
    assert said[0] == said[1]
    assert "9 trials" in said[0]


def test_a_worker_that_is_killed_leaves_its_trial_to_the_other(tmp_path):
    with started(tmp_path, "hang=600") as process:
        until(lambda: noted(tmp_path, "begun")[0])
        (killed,), _ = noted(tmp_path, "begun")
        other = subprocess.Popen(
            [*PROGRAM, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        until(lambda: sum(noted(tmp_path, "ended")[0].values()) == 8)  # all but what is held
        time.sleep(1.5)
        assert other.poll() is None  # it waits for the last
        process.send_signal(signal.SIGKILL)
        said, _ = other.communicate(timeout=120)
    assert other.returncode == 0
    assert "9 trials" in said
    assert noted(tmp_path, "ended")[0] == ALL
    assert noted(tmp_path, "begun")[0] == ALL + Counter([killed])


def test_a_parent_that_is_killed_frees_its_trial_though_its_children_live(tmp_path):
    with started(tmp_path, "hang=600", "workers=2") as process:
        until(lambda: noted(tmp_path, "begun")[0])
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        assert children  # of its loader
        process.send_signal(signal.SIGKILL)
        process.wait()
        (said,) = work(tmp_path)
    assert "9 trials" in said
    assert noted(tmp_path, "ended")[0] == ALL
