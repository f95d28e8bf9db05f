"""The launcher of the tests' programs of several processes."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import conftest
from tests._launch import asked, cells_of, rank_environments, run

HERE = Path(__file__)


def item(*cells, path=HERE, program="tests.one", **params):
    mark = SimpleNamespace(args=(program, *cells)) if cells else None
    return SimpleNamespace(path=path, get_closest_marker=lambda name: mark, callspec=SimpleNamespace(params=params))


def test_a_test_names_its_cells_by_its_parameters():
    assert cells_of(item("{mode}-{weighting}", "ddp", mode="adam", weighting="Fixed")) == (
        "tests.one",
        ["adam-Fixed", "ddp"],
    )
    assert cells_of(item()) is None


def test_a_launch_is_of_the_cells_that_the_selected_tests_of_its_file_read():
    others = [item("other"), item("b", program="tests.two"), item("c", path=HERE.parent / "test_other.py"), item()]
    session = SimpleNamespace(items=[item("{mode}", mode="b"), *others, item("a", "b")])
    assert asked(session, HERE, "tests.one") == ["b", "other", "a"]
    assert asked(session, HERE, "tests.two") == ["b"]


def test_the_costliest_files_are_files():
    names = {path.name for path in HERE.parent.rglob("test_*.py")}
    assert set(conftest.COSTLIEST) <= names


STAMPED = "import time; began = time.monotonic(); time.sleep(0.3); print(began, time.monotonic())"


@pytest.mark.timeout(1500)
def test_no_two_launches_run_at_once(tmp_path):
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()

    def launched(folder):
        (said,) = run([sys.executable, "-S", "-c", STAMPED], [{}], folder, timeout=60)
        return [float(stamp) for stamp in said.split()]

    with ThreadPoolExecutor() as pool:
        (_, first_ended), (second_began, _) = sorted(pool.map(launched, folders))
    assert first_ended < second_began


@pytest.mark.timeout(1500)
def test_ranks_that_hang_or_fail_are_ended_and_what_they_said_is_shown(tmp_path):
    code = "import os, sys, time; rank = os.environ['RANK']; print('here is', rank, flush=True); "
    hang, fail = code + "time.sleep(60)", code + "sys.exit(3) if rank == '1' else time.sleep(60)"
    with pytest.raises(AssertionError, match=r"rank 0, code None\nhere is 0[\s\S]*rank 1, code None\nhere is 1"):
        run([sys.executable, "-S", "-c", hang], rank_environments(), tmp_path, timeout=3)
    with pytest.raises(AssertionError, match=r"rank 0, code None[\s\S]*rank 1, code 3\nhere is 1"):
        run([sys.executable, "-S", "-c", fail], rank_environments(), tmp_path, timeout=60)
