"""Reads an offline wandb run back as wandb does: by `wandb leet inspect`, or by the reader that older ones have."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def records(folder: Path, patience: float = 30.0) -> list[dict[str, Any]]:
    """Return the records of a finished run; its file may be there, and complete, only a moment after `finish`."""
    read = _read if find_spec("wandb.sdk.internal.datastore") else _inspect
    deadline = time.monotonic() + patience
    while True:
        found, complaint = read(folder)
        if any(record["type"] == "exit" for record in found):
            return found
        assert time.monotonic() < deadline, f"no finished run in {folder}: {complaint}"
        time.sleep(0.05)


def history(folder: Path, patience: float = 30.0) -> list[dict[str, float]]:
    """Return the history rows of a finished run."""
    return [record["history"]["item"] for record in records(folder, patience) if record["type"] == "history"]


def _inspect(folder: Path) -> tuple[list[dict[str, Any]], str]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return [json.loads(line) for line in shown.stdout.splitlines()], shown.stderr


def _read(folder: Path) -> tuple[list[dict[str, Any]], str]:
    try:
        return list(_stored(next(folder.glob("*.wandb")))), ""
    except (AssertionError, StopIteration) as error:  # not written yet
        return [], repr(error)


def _stored(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what `_inspect` would of each record, of what tests look at."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    with closing(DataStore()) as store:
        store.open_for_scan(str(path))
        found = list(iter(store.scan_data, None))
    for data in found:
        record = wandb_internal_pb2.Record.FromString(data)
        kind = record.WhichOneof("record_type")
        items = {"history": record.history.item, "config": record.config.update}.get(kind, [])
        given: dict[str, Any] = {}
        for item in items:
            *path_to, last = item.nested_key or [item.key]
            place = given
            for key in path_to:
                place = place.setdefault(key, {})
            place[last] = json.loads(item.value_json)
        yield {"type": kind, kind: {"item" if kind == "history" else "update": given}}
