"""The reader of wandb's file agrees with wandb's own, and reads half-written files as far as they go."""

import shutil
import struct
import zlib
from pathlib import Path

import pytest
import wandb

from lightning_uncertainty.dashboards import read_run
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


def part_of_run(folder, name, run_id, rows, **config):
    """Write what one process of an offline run leaves, under the name that a time gives its folder."""
    with wandb.init(mode="offline", dir=folder, project="test", id=run_id, config=config) as offline:
        for step, values in rows:
            offline.log({**values, "trainer/global_step": step})
        made = Path(offline.dir).parent
    _wandb_reader.records(made)  # waits for the file
    return made.rename(made.with_name(name))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Two processes of one run, of which the second went back to step 20, and a run beside it."""
    folder = tmp_path_factory.mktemp("resumed")
    keys = ("weight/a", "loss/a")
    first = [(step, dict.fromkeys(keys, float(step))) for step in (10, 20, 30, 41)]
    second = [(step, dict.fromkeys(keys, -float(step))) for step in (20, 30, 40)] + [(0, {"test/a/loss": 7.0})]
    parts = [
        part_of_run(folder, "offline-run-20260101_100000-one", "one", first, lr=0.1, old=True),
        part_of_run(folder, "offline-run-20260102_090000-one", "one", second, lr=0.2),
    ]
    return [*parts, part_of_run(folder, "offline-run-20260101_110000-two", "two", first)]


@pytest.mark.parametrize("given", ["first", "second", "file"])
def test_a_run_that_was_resumed_is_one(resumed, given):
    first, second, _ = resumed
    run = read_run({"first": first, "second": second, "file": second / "run-one.wandb"}[given])
    curve = run.training("loss", "a")
    assert (curve.steps, curve.values) == ([10, 20, 30, 40], [10, -20, -30, -40])  # 41 was made again, as 40
    assert run.held_out["test", "a", "loss"].values == [7.0]
    assert (run.config["lr"], run.config["old"]) == (0.2, True)


def test_a_folder_above_one_run_in_two_parts_is_that_run_and_others_are_named(resumed, tmp_path):
    above = resumed[0].parent
    with pytest.raises(ValueError, match=r"one run: found 2 in .*run-one.wandb, .*run-two.wandb; give one of them"):
        read_run(above)
    shutil.copytree(above, tmp_path / "wandb", ignore=shutil.ignore_patterns("*-two", "latest-run", "debug*"))
    assert len(read_run(tmp_path).training("loss", "a").steps) == 4


def test_a_file_elsewhere_is_read_alone(resumed, tmp_path):
    shutil.copy(resumed[0] / "run-one.wandb", tmp_path)
    assert read_run(tmp_path).training("loss", "a").steps == [10, 20, 30, 41]
