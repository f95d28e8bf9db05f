"""Reads an offline wandb run back from its file: records in LevelDB's log framing, protocol buffers within."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2

_BLOCK, _HEADER = 32768, 7


def _records(data: bytes) -> Iterator[wandb_internal_pb2.Record]:
    assert data[:4] == b":W&B"
    offset, parts = _HEADER, b""
    while offset + _HEADER <= len(data):
        room = _BLOCK - offset % _BLOCK
        if room < _HEADER:
            offset += room
            continue
        checksum, size, kind = struct.unpack("<IHB", data[offset : offset + _HEADER])
        if kind == 0:
            return
        chunk = data[offset + _HEADER : offset + _HEADER + size]
        if len(chunk) < size:  # being written
            return
        assert zlib.crc32(chunk, zlib.crc32(bytes([kind]))) == checksum
        offset += _HEADER + size
        parts = chunk if kind in (1, 2) else parts + chunk  # 1 whole, 2 first, 3 middle, 4 last
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record


def history(folder: Path, patience: float = 30.0) -> list[dict[str, float]]:
    """Return the history rows of a finished run; its file may be there, and complete, only a moment after `finish`."""
    deadline = time.monotonic() + patience
    while True:
        files = list(folder.glob("*.wandb"))
        records = list(_records(files[0].read_bytes())) if files and files[0].stat().st_size > _HEADER else []
        if any(record.HasField("exit") for record in records):
            break
        assert time.monotonic() < deadline, f"no finished run in {folder}"
        time.sleep(0.05)
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
