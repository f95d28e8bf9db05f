"""The benchmark of scenes makes its table, on a few small streets."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_the_table_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "scenes", raising=False)
    scenes = importlib.import_module("scenes")
    monkeypatch.setattr(scenes, "WEIGHTINGS", {name: scenes.WEIGHTINGS[name] for name in KEPT})
    options = ["--root", str(tmp_path / "streets"), "--size", "32", "64", "--streets", "8", "4", "4", "--epochs", "1"]
    options += ["--seeds", "0", "1", "--rates", "1e-3", "3e-3", "--folder", str(tmp_path / "trials")]
    monkeypatch.setattr(sys, "argv", ["scenes.py", *options])
    scenes.main()
    found = capsys.readouterr().out
    names = {line.split(" | ")[0].strip("| ") for line in found.splitlines() if line.startswith("| ")}
    assert names == {"weighting", "single task", "single task, uncertainty", *KEPT}
    assert "| weighting | semantics mIoU | instances MAE | instances AP50 | disparity MAE |" in found
    assert "nan" not in found


KEPT = ("equal", "uncertainty", "uncertainty, literal", "MGDA after uncertainty")
