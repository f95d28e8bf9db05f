"""Reads the file of a wandb run: records in LevelDB's log framing, protocol buffers within."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["files_of_run", "read_wandb"]

_BLOCK, _HEADER = 32768, 7  # the file's own header is as long as that of a chunk
_FOLDER = re.compile(r"(?:offline-)?run-(\d{8}_\d{6})-.+")  # one for each process
_WHOLE, _FIRST, _LAST = 1, 2, 4  # a record in one chunk, and the ends of one in several


def files_of_run(path: Path) -> list[Path]:
    """Return the files of the run that a file is of, oldest first: a run that is resumed has a folder for each process.

    Example:
        >>> files_of_run(Path("elsewhere/run-x1.wandb"))
        [PosixPath('elsewhere/run-x1.wandb')]
    """
    folder = path.resolve().parent
    if not _FOLDER.fullmatch(folder.name):
        return [path]
    others = folder.parent.glob(f"*run-*/{path.name}")
    begun = {file: found[1] for file in others if (found := _FOLDER.fullmatch(file.parent.name))}
    return sorted(begun, key=lambda file: begun[file])


def read_wandb(path: Path) -> tuple[str, list[tuple[int, dict[str, float]]], dict[str, Any]]:
    """Return name, rows with their steps, and config; a run that is still being written ends at its last whole record.

    Of a run that was resumed all files are read. What it made again, from the step of its checkpoint on, takes the
    place of what was there before, key by key.

    Raises:
        ValueError: it is no file of wandb's.
    """
    name, rows, config = path.stem, list[tuple[int, dict[str, float]]](), dict[str, Any]()
    for file in files_of_run(path):
        name, found = _read_file(file, name, config)
        again: dict[str, int] = {}
        for step, values in found:
            again.update({key: min(step, again.get(key, step)) for key in values})
        rows = [(step, {k: v for k, v in values.items() if step < again.get(k, step + 1)}) for step, values in rows]
        rows = [*filter(lambda row: row[1], rows), *found]
    config.pop("_wandb", None)  # wandb's notes to itself
    return name, rows, config


def _read_file(path: Path, name: str, config: dict[str, Any]) -> tuple[str, list[tuple[int, dict[str, float]]]]:
    """Return name and rows of a file, and bring the config up to date."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in records(path):
        record = wandb_internal_pb2.Record.FromString(data)  # type: ignore[attr-defined]
        if record.HasField("run"):
            name = record.run.display_name or record.run.run_id or name
            _configure(config, record.run.config)
        elif record.HasField("config"):
            _configure(config, record.config)
        elif record.HasField("history"):
            paths = [(_keys(item), item) for item in record.history.item]  # longer ones lead into tables and images
            items = {path[0]: json.loads(item.value_json) for path, item in paths if len(path) == 1}
            step = items.pop("trainer/global_step", None)
            values = {key: value for key, value in items.items() if _is_metric(key, value)}
            if values and isinstance(step, int | float):  # Lightning's rows; others have steps of their own
                rows.append((int(step), values))
    return name, rows


def records(path: Path) -> Iterator[bytes]:
    """Yield every whole record; the rest of a file is left unread from the first chunk that is incomplete.

    Raises:
        ValueError: it is no file of wandb's.
    """
    data = path.read_bytes()
    if data[:4] != b":W&B":
        raise ValueError(
            f"a wandb run should begin with ':W&B': found {data[:4]!r} in {path}; give the run-*.wandb file of an "
            "offline run, or its folder"
        )
    offset, parts = _HEADER, b""
    while offset + _HEADER <= len(data):
        room = _BLOCK - offset % _BLOCK
        if room < _HEADER:  # no chunk begins here
            offset += room
            continue
        checksum, size, kind = struct.unpack_from("<IHB", data, offset)
        chunk = data[offset + _HEADER : offset + _HEADER + size]
        if kind == 0 or len(chunk) < size or zlib.crc32(chunk, zlib.crc32(bytes([kind]))) != checksum:
            return
        offset += _HEADER + size
        parts = chunk if kind in (_WHOLE, _FIRST) else parts + chunk
        if kind in (_WHOLE, _LAST):
            yield parts


def _keys(item: Any) -> list[str]:
    return list(item.nested_key) or [item.key]


def _configure(config: dict[str, Any], record: Any) -> None:
    """Bring a config up to date with a record: what it sets, then what it removes."""
    for item in record.update:
        *path, last = _keys(item)
        place = config
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    for item in record.remove:
        *path, last = _keys(item)
        place = config
        for key in path:
            place = place.get(key, {})
        place.pop(last, None)


def _is_metric(key: str, value: Any) -> bool:
    return not key.startswith("_") and isinstance(value, int | float) and not isinstance(value, bool)
