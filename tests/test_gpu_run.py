"""The run on a GPU tells what it would do, stops what takes too long, and loses no test to another."""

import ast
import importlib
import math
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    return importlib.import_module("gpu")


@pytest.fixture
def part(gpu, monkeypatch, tmp_path):
    """Make a part of the tests in a file, and run it."""
    monkeypatch.setattr(gpu, "ROOT", tmp_path)

    def run(text, limit=30.0, until=math.inf):
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        (tmp_path / "test_own.py").write_text(text)
        made = gpu.tests("own", 60.0, limit, "test_own.py")
        environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return gpu.run_part(made, tmp_path / "own.txt", until, environment)

    return run


def outcomes(outcome):
    return {test.rpartition("::")[2]: entry["outcome"] for test, entry in outcome.tests.items()}


def ends(pid, within=5.0):
    """Whether a process is no more, or nobody has taken note of its end, in so many seconds."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_a_dry_run_tells_parts_shares_and_commands(gpu, capsys):
    assert gpu.main(["--dry-run"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("350 s in all: Python ")
    assert "gpu_step: 45 s of its own: python benchmarks/gpu_step.py\n" in told
    assert sum(part.share for part in gpu.PARTS) <= gpu.BUDGET - gpu.LAST
    assert gpu.BUDGET < 360


def test_every_file_of_tests_is_in_a_part(gpu):
    named = [argument for part in gpu.PARTS for argument in part.arguments if argument.startswith("tests/")]
    assert sorted(named) == sorted(f"tests/gpu/{file.name}" for file in (ROOT / "tests/gpu").glob("test_*.py"))


def imported(file):
    """Return the names of modules that a file imports when it is imported."""
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [[node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names] for node in nodes]
    return {name for some in names for name in some}


def test_tests_for_a_gpu_import_what_is_there():
    there = {"hypothesis", "lightning_uncertainty", "numpy", "pytest", "pytorch_lightning", "torch", "torchmetrics"}
    there |= {"filelock"}  # torch's own
    files, seen, names = [ROOT / "tests/conftest.py", *(ROOT / "tests/gpu").glob("*.py")], set(), set()
    while files:
        file = files.pop()
        if file in seen:
            continue
        seen.add(file)
        names |= (own := imported(file))
        files += [ROOT / f"{name.replace('.', '/')}.py" for name in own if name.startswith("tests.")]
    tops = {name.partition(".")[0] for name in names} - {"tests"}
    assert tops <= there | sys.stdlib_module_names
    assert len(seen) > 9


@pytest.fixture
def up(gpu, monkeypatch, tmp_path):
    """A file at whose sight time is up."""
    file = tmp_path / "up"
    clock = SimpleNamespace(time=time.time, sleep=time.sleep, monotonic=lambda: 100.0 * file.exists())
    monkeypatch.setattr(gpu, "time", clock)
    return file


def test_a_part_that_takes_too_long_is_stopped_with_what_it_started(gpu, up, tmp_path):
    program = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"print(child.pid); pathlib.Path({str(up)!r}).touch(); time.sleep(60)"
    )
    output = tmp_path / "long.txt"
    output.touch()
    outcome = gpu.run_part(gpu.Part("long", 1.0, ("-c", program)), output, 50.0, {})
    assert outcome.end == "time was up"
    assert not outcome.well
    written = output.read_text()
    assert "Fatal Python error: Aborted" in written  # where it was
    assert ends(next(line for line in written.splitlines() if line.isdigit()))


def test_the_rest_goes_on_where_a_part_fails(gpu, tmp_path, monkeypatch):
    parts = [gpu.Part("bad", 5.0, ("-c", "raise ValueError")), gpu.Part("good", 5.0, ("-c", "print(6 * 7)"))]
    monkeypatch.setattr(gpu, "machine", lambda seconds: {"GPU": "some"})
    assert gpu.main(["--out", str(tmp_path)], parts) == 1
    assert "42" in (tmp_path / "good.txt").read_text()
    told = (tmp_path / "gpu.txt").read_text()
    assert re.search(r"\| `bad` \| \d+ \| exit code 1 \|\n\| `good` \| \d+ \| done \|", told)
    assert gpu.main(["--out", str(tmp_path), "--only", "good"], parts) == 0


TESTS = """
import os, time

def test_one(record_property):
    record_property("gap", 0.25)

def test_fails():
    assert 1 == 2, "no"

def test_ends_the_process():
    os._exit(3)

def test_hangs():
    time.sleep(60)

def test_loses_the_gpu():
    raise RuntimeError("CUDA error: device-side assert triggered")

def test_last():
    pass
"""


def test_no_test_is_lost_to_another(gpu, part, tmp_path):
    outcome = part(TESTS, limit=4.0)
    bad = ["test_fails", "test_ends_the_process", "test_hangs", "test_loses_the_gpu"]
    assert outcomes(outcome) == {"test_one": "passed", **dict.fromkeys(bad, "failed"), "test_last": "passed"}
    assert not outcome.end
    assert not outcome.not_run
    written = (tmp_path / "own.txt").read_text()
    assert written.count('assert 1 == 2, "no"') == 1
    assert "time.sleep(60)" in written or "in test_hangs" in written
    told = gpu.summary({gpu.PARTS[0]: outcome})
    assert "| gap | 0.25 |" in told
    assert "test_hangs: test_own.py::test_hangs took more than 4 s, while this test ran" in told
    assert "test_ends_the_process: the process ended with code 3, while this test ran" in told
    assert "test_fails: AssertionError: no" in told


LONG = """
import pathlib, time

def test_a():
    pass

def test_b():
    pathlib.Path("up").touch()
    time.sleep(60)

def test_c():
    pass
"""


def test_what_is_left_when_time_is_up_is_told(gpu, part, up):
    outcome = part(LONG, until=50.0)
    assert outcome.end == "time was up"
    assert outcomes(outcome) == {"test_a": "passed", "test_b": "failed"}
    assert outcome.not_run == ["test_own.py::test_c"]
    assert "1 not run:\n\n- test_own.py::test_c: 1" in gpu.summary({gpu.PARTS[0]: outcome})


def test_a_file_that_cannot_be_imported_is_a_failure(gpu, part):
    outcome = part("import nothing_of_this_name")
    assert outcomes(outcome) == {"test_own.py": "failed"}
    assert not outcome.well
    assert "No module named 'nothing_of_this_name'" in gpu.summary({gpu.PARTS[0]: outcome})
