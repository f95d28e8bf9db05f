"""The guide's table of modes: every mark is a test that runs, and every test of a mode has its mark."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer._weightings import WEIGHTINGS

pytestmark = pytest.mark.slow  # it imports what the tests import

ROOT = Path(__file__).parents[2]
DDP = "test_ddp.py::test_two_processes_equal_one[{mode}-{weighting}]"
FSDP = "test_fsdp2.py::test_two_processes_train_as_one[{weighting}, {mode}]"
PRECISION = "test_precision.py::test_it_trains_as_in_float32[{mode}-{weighting}]"
COMPILE = "test_compile.py::test_a_compiled_fit_equals_an_eager_one[{mode}-{weighting}]"
RESUME = "test_resume.py::test_the_end_is_the_same[{mode}-{weighting}, *]"
BLEND = "test_warm_up.py::test_fixed_weights_give_way_to_the_own[{weighting}]"
HOLD = "test_warm_up.py::test_sigma_is_held[{weighting}]"
MODES = {
    '`strategy="ddp"`': (DDP, "ddp"),
    "`ddp`, Adam": (DDP, "adam"),
    "`ddp`, float32": (DDP, "float32"),
    "`ddp`, plain means": (DDP, "means"),
    "`ddp_find_unused_parameters_true`": (DDP, "find_unused"),
    "the same, heads skipped": (DDP, "skipped_heads"),
    "`DDPStrategy(static_graph=True)`": (DDP, "static_graph"),
    "`DDPStrategy(broadcast_buffers=False)`": (DDP, "no_broadcast"),
    "`ddp_spawn`": (DDP, "spawn"),
    "`ddp`, clipping by norm": (DDP, "clipping"),
    "`ddp`, accumulation": (DDP, "accumulation"),
    "`ModelParallelStrategy` (FSDP2)": (FSDP, "float64"),
    "FSDP1 in plain torch": (FSDP, "wrapped apart"),
    **{f'`precision="{p}"`': (PRECISION, p) for p in ("32-true", "64-true", "16-mixed", "bf16-mixed", "16-true")},
    '`precision="bf16-true"`': (PRECISION, "bf16-true"),
    "`torch.compile(net)`": (COMPILE, "torch.compile(net)"),
    "`net.compile()`": (COMPILE, "net.compile()"),
    "resumed after SIGKILL": (RESUME, "module"),
    "`UncertaintyWarmUp`, blending": (BLEND, ""),
    "`UncertaintyWarmUp`, holding σ": (HOLD, ""),
}
COLLECT = """
import json, pathlib, pytest, sys

class Collected:
    def pytest_collection_finish(self, session):
        run = [item for item in session.items if not any(map(self.is_left_out, item.iter_markers()))]
        pathlib.Path(sys.argv[1]).write_text(json.dumps([item.nodeid for item in run]))

    @staticmethod
    def is_left_out(mark):
        return mark.name in ("skip", "xfail") or (mark.name == "skipif" and mark.args[0])

sys.exit(pytest.main(["--collect-only", "-qq", *sys.argv[2:]], plugins=[Collected()]))
"""


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """The tests of this folder that are never skipped, without the folder."""
    out = tmp_path_factory.mktemp("collected") / "ids.json"
    files = sorted({f"tests/trainer/{test.partition('::')[0]}" for test, _ in MODES.values()})
    command = [sys.executable, "-c", COLLECT, out, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return {test.rpartition("tests/trainer/")[2] for test in json.loads(out.read_text(encoding="utf-8"))}


def table():
    """Return which weightings each row of the guide marks, by the name of its mode."""
    text = (ROOT / "docs/trainer.md").read_text(encoding="utf-8")
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in re.findall(r"^\|.*\|$", text, re.M))
    names = [next(name for name in WEIGHTINGS if name.startswith(cell)) for cell in head[1:-1]]
    assert sorted(names) == sorted(WEIGHTINGS)
    assert {cell for row in rows for cell in row[1:-1]} == {"✓", "–"}
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: {name for name, cell in zip(names, row[1:-1], strict=True) if cell == "✓"} for row in rows}


def pattern_of(mode, weighting):
    test, name = MODES[mode]
    return re.escape(test.format(mode=name, weighting=weighting)).replace(r"\*", ".*")


def test_the_rows_are_the_modes():
    assert list(table()) == list(MODES)


@pytest.mark.parametrize("mode", MODES)
def test_every_mark_is_a_test_and_every_test_a_mark(mode, collected):
    tested = {name for name in WEIGHTINGS if any(re.fullmatch(pattern_of(mode, name), test) for test in collected)}
    assert table()[mode] == tested


@pytest.mark.parametrize("template", [DDP, FSDP, PRECISION, COMPILE])
def test_every_mode_that_is_tested_with_all_weightings_has_a_row(template, collected):
    pattern = re.escape(template).replace(r"\{mode\}", "(.+)").replace(r"\{weighting\}", f"({'|'.join(WEIGHTINGS)})")
    found = {match.groups() for test in collected if (match := re.fullmatch(pattern, test))}
    cells = {pair if template != FSDP else pair[::-1] for pair in found}
    whole = {mode for mode, _ in cells if {(mode, weighting) for weighting in WEIGHTINGS} <= cells}
    assert whole == {mode for test, mode in MODES.values() if test == template}
