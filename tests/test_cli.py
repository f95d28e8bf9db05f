"""The demo, run as a newcomer runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_uncertainty.cli import demo, main
from tests import _wandb_reader


def test_the_demo_logs_prints_and_plots(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true", "COLUMNS": "100"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    environment.pop("WANDB_SERVICE", None)  # a process of its own, as a newcomer's
    command = [sys.executable, "-m", "lightning_uncertainty", "demo", "--epochs", "3", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert {"species", "sex", "body_mass_g", "flipper_length_mm"} <= set(rows)
    grams = re.search(r"σ of the body mass is (\d+) g; on held-out birds the net is off by (\d+) g", done.stdout)
    sigma, rmse = map(int, grams.groups())
    assert 200 < rmse < 1000
    assert 200 < sigma < 1000
    assert f"{sigma}" == f"{float(rows['body_mass_g'][4]):.0f}"
    assert (tmp_path / "out/sigma.png").stat().st_size > 10_000
    folder = re.search(r"wandb leet (\S+)", done.stdout).group(1)
    written = _wandb_reader.history(tmp_path / folder)
    assert any("sigma/body_mass_g" in row for row in written)
    board = re.search(r"tensorboard --logdir (\S+)", done.stdout).group(1)
    assert {path.name for path in (tmp_path / board).iterdir()} == {"uncertainty", "equal"}
    assert "Epoch 2/2" in done.stdout


def test_the_demo_names_what_is_missing(monkeypatch):
    monkeypatch.setattr("lightning_uncertainty.cli.find_spec", lambda name: None if name == "tensorboard" else object())
    with pytest.raises(SystemExit, match=r"the demo needs tensorboard: pip install 'lightning-uncertainty\[demo\]'"):
        demo()
    monkeypatch.setattr("lightning_uncertainty.cli.find_spec", lambda name: object())
    with pytest.raises(SystemExit, match="epochs should be at least 1: found 0"):
        demo(epochs=0)
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    with pytest.raises(SystemExit, match=r"the command line needs jsonargparse.*\[cli\]"):
        main()
