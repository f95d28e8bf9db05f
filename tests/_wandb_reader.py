"""Reads an offline wandb run back with wandb's own command, `wandb leet inspect`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def records(folder: Path, patience: float = 30.0) -> list[dict[str, Any]]:
    """Return the records of a finished run; its file may be there, and complete, only a moment after `finish`."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    deadline = time.monotonic() + patience
    while True:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
        found = [json.loads(line) for line in shown.stdout.splitlines()]
        if any(record["type"] == "exit" for record in found):
            return found
        assert time.monotonic() < deadline, f"no finished run in {folder}: {shown.stderr}"
        time.sleep(0.05)


def history(folder: Path, patience: float = 30.0) -> list[dict[str, float]]:
    """Return the history rows of a finished run."""
    return [record["history"]["item"] for record in records(folder, patience) if record["type"] == "history"]
