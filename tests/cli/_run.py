"""Runs the command line, as a newcomer or in this process."""

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from lightning_uncertainty.cli import main

EXAMPLE = files("lightning_uncertainty.examples").joinpath("penguins.yaml").read_text(encoding="utf-8")
ELSEWHERE = "ignore:The dirpath has changed"  # ModelCheckpoint's, of a checkpoint of another run


def run(*arguments):
    """Run the command line in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lightning-uncertainty", *map(str, arguments)])
        main()


def subprocess_of(*arguments, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true", "COLUMNS": "100"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    environment.pop("WANDB_SERVICE", None)  # a process of its own, as a newcomer's
    command = [sys.executable, "-m", "lightning_uncertainty", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def checkpoints(folder):
    return folder / "runs/penguins/version_0/checkpoints"
