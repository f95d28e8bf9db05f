"""The reader of wandb's file agrees with wandb's own, and reads half-written files as far as they go."""

import struct
import zlib
from pathlib import Path

import pytest
import wandb

from lightning_uncertainty.dashboards.report._wandb_file import read_wandb, records
from tests import _wandb_reader


@pytest.fixture
def run(fitted):
    folder = fitted[0]["cloud"]
    return next(folder.glob("*.wandb")), _wandb_reader.records(folder)


def test_every_row_and_the_config_are_those_that_wandb_reads(run):
    file, theirs = run
    name, rows, config = read_wandb(file)
    assert name == "birds"
    logged = [record["history"]["item"] for record in theirs if record["type"] == "history"]
    expected = [item for item in logged if "epoch" in item or "uw/loss/kind" in item]
    assert len(rows) == len(expected) == 16 + 4
    assert len(logged) == 16 + 4 + 1  # and the monitor's table, which holds no curve
    for (step, values), item in zip(rows, expected, strict=True):
        assert step == item["trainer/global_step"]
        assert values == {k: v for k, v in item.items() if not k.startswith("_") and k != "trainer/global_step"}
    updates = [record["config"]["update"] for record in theirs if record["type"] == "config"]
    assert config == {key: value for update in updates for key, value in update.items()}


def test_a_file_cut_anywhere_gives_its_first_records(run, tmp_path):
    file, theirs = run
    data, whole = file.read_bytes(), list(records(file))
    assert len(whole) == len(theirs)
    counts = []
    for size in [*range(7, len(data), len(data) // 60), len(data) - 1]:
        part = tmp_path / "part.wandb"
        part.write_bytes(data[:size])
        found = list(records(part))
        assert found == whole[: len(found)]
        counts.append(len(found))
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == len(whole) - 1


def test_records_over_several_blocks_are_joined_and_spoilt_ones_end_the_run(run, tmp_path):
    with wandb.init(mode="offline", dir=tmp_path, project="test", config={"text": "x" * 100_000}) as offline:
        offline.log({"loss/depth": 1.0, "trainer/global_step": 3})
        folder = Path(offline.dir).parent
    _wandb_reader.records(folder)  # waits for the file
    file = next(folder.glob("*.wandb"))
    _, rows, config = read_wandb(file)
    assert config == {"text": "x" * 100_000}
    assert rows == [(3, {"loss/depth": 1.0})]
    data = bytearray(file.read_bytes())
    data[40_000] ^= 1  # inside the config
    file.write_bytes(data)
    assert read_wandb(file)[1:] == ([], {})


@pytest.mark.parametrize("rest", range(9))
def test_a_block_may_end_too_early_for_another_chunk(rest, tmp_path):
    def chunk(data):
        return struct.pack("<IHB", zlib.crc32(b"\x01" + data), len(data), 1) + data

    first, second = b"x" * (32768 - 7 - 7 - rest), b"second"
    file = tmp_path / "run.wandb"
    file.write_bytes(
        b":W&B\0\0\0" + chunk(first) + (b"\0" * rest if rest < 7 else chunk(b"y" * (rest - 7))) + chunk(second)
    )
    assert [*records(file)] == [first, *([] if rest < 7 else [b"y" * (rest - 7)]), second]


def test_a_file_of_somebody_else_is_refused(tmp_path):
    file = tmp_path / "run-1.wandb"
    file.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"should begin with ':W&B': found b'PK.* in .*run-1.wandb; give the run-"):
        read_wandb(file)
