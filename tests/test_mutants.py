"""The list of faults fits the code and the tests of today, and what is told of a fault is what came of it."""

import os
import re
import subprocess
import sys
from pathlib import Path

from mutants.__main__ import MARKS, problems
from mutants.faults import FAULTS, Fault

ROOT = Path(__file__).parents[1]


def test_every_fault_has_a_place_and_tests():
    assert problems(ROOT, FAULTS) == []


def test_the_fast_tests_are_those_of_make_test():
    assert (ROOT / "Makefile").read_text(encoding="utf-8").count(f'-m "{MARKS}"') == 1


def test_what_is_wrong_with_a_fault_is_told():
    fault = Fault("a", "mixin.py", "sigma", "sigma", ("tests/test_mutants.py::test_nothing", "tests/nothing.py"))
    found = problems(ROOT, [fault, fault._replace(old="not there", tests=())])
    assert [re.sub("found [1-9].*", "found several", problem) for problem in found] == [
        "a: the name is there twice",
        "a: the old text should be in mixin.py once: found several",
        "a: the new text is the old one",
        "a: there is no tests/test_mutants.py::test_nothing",
        "a: there is no tests/nothing.py",
        "a: the old text should be in mixin.py once: found 0",
        "a: no test is named",
    ]


PROJECT = {
    ".gitignore": "left.py\n",
    "left.py": "",
    "lightning_uncertainty/__init__.py": "ONE = 1\nTWO = 2\n",
    "tests/test_numbers.py": """
import subprocess, sys
from pathlib import Path
import pytest
import lightning_uncertainty

def test_one(tmp_path):
    assert not Path("left.py").exists()
    code = "import lightning_uncertainty; print(lightning_uncertainty.ONE)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path).stdout
    assert (lightning_uncertainty.ONE, shown.strip()) == (1, "1")

@pytest.mark.slow
def test_two():
    assert lightning_uncertainty.TWO == 2
""",
}
PROGRAM = """
import sys
from pathlib import Path
from mutants import __main__ as runner
from mutants.faults import Fault

def fault(name, old, new, test, whole=""):
    return Fault(name, "__init__.py", old, new, (f"tests/test_numbers.py::{test}",), whole)

runner.ROOT, runner.PRELOADED = Path(sys.argv[1]), ("pytest",)
FAULTS = [
    fault("killed", "ONE = 1", "ONE = 3", "test_one"),
    fault("unseen", "TWO = 2", "TWO = 3", "test_one"),
    fault("deselected", "TWO = 2", "TWO = 3", "test_two"),
    fault("whole", "TWO = 2", "TWO = 3", "test_two", "it is slow"),
    fault("no module", "ONE = 1", "ONE = (", "test_one"),
]
HANGING = fault("hanging", "ONE = 1", "ONE = 1; import time; time.sleep(999)", "test_one")
runner.FAULTS = [HANGING] if "--limit" in sys.argv else FAULTS
sys.exit(runner.main(sys.argv[2:]))
"""


def test_verdicts(tmp_path):
    """Copies hold no ignored file; processes of the tests see the fault, too; the project stays as it is."""
    for name, text in PROJECT.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
        rows = re.findall(r"^(\S.*?)  +(\S.*?)  +[\d.]+$", done.stdout, re.MULTILINE)
        return done.returncode, dict(rows), done.stdout

    code, rows, shown = run()
    found = {"killed": "killed", "unseen": "survived", "deselected": "error 5", "whole": "killed"}
    found |= {"no module": "error 70", "no fault": "passed", "no fault, whole suite": "passed"}
    assert (code, rows) == (1, found)
    assert "SyntaxError" in shown
    assert "2 of 5 faults killed\n" in shown
    assert set(shown.splitlines()[-3:]) == {"- unseen", "- deselected", "- no module"}
    assert run("--limit", "1")[:2] == (0, {"no fault": "passed", "hanging": "killed, timed out"})
    assert (tmp_path / "lightning_uncertainty/__init__.py").read_text() == PROJECT["lightning_uncertainty/__init__.py"]
