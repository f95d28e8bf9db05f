"""The benchmarks of scenes and of nuclei make their tables, on a few small pictures."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def benchmark(name, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.mark.slow
def test_the_table_is_made(tmp_path, monkeypatch, capsys):
    scenes = benchmark("scenes", monkeypatch)
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


@pytest.mark.parametrize("channels_first", [False, True])
def test_nuclei_are_read_learnt_and_counted(channels_first, tmp_path, monkeypatch, capsys):
    ids = np.zeros((16, 32, 32), np.uint8)
    ids[:, 4:14, 4:14], ids[:, 18:30, 16:30] = 1, 2
    images = np.repeat((255 * (ids > 0)).astype(np.uint8)[..., None], 3, axis=-1)
    images = images.transpose(0, 3, 1, 2) if channels_first else images
    np.savez(tmp_path / "nuclei.npz", image_train=images, instance_train=ids, image_test=images, instance_test=ids)
    nuclei = benchmark("nuclei", monkeypatch)
    monkeypatch.setattr(nuclei, "WAYS", {"`peaks`": {}})
    monkeypatch.setattr(sys, "argv", ["nuclei.py", str(tmp_path / "nuclei.npz"), "--epochs", "20"])
    nuclei.main()
    found = capsys.readouterr().out
    assert "16 tiles for training, 16 for testing, 20 epochs" in found
    assert float(found.split("| `peaks` | ")[1].split(" |")[0]) > 90


KEPT = ("equal", "uncertainty", "uncertainty, literal", "MGDA after uncertainty")
