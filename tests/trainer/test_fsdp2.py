"""Sharded by FSDP2 (and, in plain torch, by FSDP1), two processes train as one does on the whole batch."""

import re

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.trainer._fsdp2 import FSDP1, FULL, OLD_SHARDS, SAME, SHARDS, fit, seeded, state_of, straight, tuned
from tests.trainer._sharded import Named


def cells(*names):
    return pytest.mark.cells("tests.trainer._fsdp2", *names)


def assert_as_one(two, one, tolerance):
    assert two["state"].keys() == one["state"].keys()
    for name, value in one["state"].items():
        scale = value.double().nan_to_num().abs().max().clamp(min=1e-3).item()
        torch.testing.assert_close(
            two["state"][name], value, rtol=0, atol=tolerance * scale, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert two["sigma"] == pytest.approx(one["sigma"], rel=tolerance)
    assert len(two["rows"]) == len(one["rows"]) > 0
    for row, expected in zip(two["rows"], one["rows"], strict=True):
        assert row == pytest.approx(expected, rel=10 * tolerance, abs=10 * tolerance)
    assert two["logged"] == pytest.approx(one["logged"], rel=1e-6)


@cells("{case}")
@pytest.mark.parametrize("case", [*SAME, *FSDP1])
def test_two_processes_train_as_one(case, found):
    """State, σ, every row of the monitor, and what validation logged."""
    one = {**SAME, **FSDP1}[case](1)
    assert_as_one(found(case), one, 1e-6 if case.endswith("float32") else 1e-12)
    assert bool(one["logged"]) is ("meta" in case or "validated" in case)


@cells("straight", "{kind}")
@pytest.mark.parametrize("kind", ["sharded", "full", "full, of before"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind, found):
    assert_as_one(found("straight"), straight(1), 1e-12)
    assert_as_one(found(kind), found("straight"), 0.0)


@cells("straight", "full")
def test_a_full_checkpoint_resumes_on_one_process(found):
    resumed = fit(seeded(Named, seed=5).double(), 1, max_epochs=2, ckpt_path=found.folder / FULL)
    assert_as_one(resumed, found("straight"), 1e-12)


@cells("bf16-true", "UncertaintyWeighting, float64")
def test_log_variances_stay_float32_under_bf16(found):
    state = found("bf16-true")["state"]
    assert state["trunk.weight"].dtype is torch.bfloat16
    assert state["task_weighting.offset"].dtype is torch.float32
    expected = found("UncertaintyWeighting, float64")["sigma"]
    assert found("bf16-true")["sigma"] == pytest.approx(expected, rel=0.02)


def by_name(outcome, names):
    """The vectors of a weighting, by task."""
    vectors = {name: value for name, value in outcome["state"].items() if name.startswith("task_weighting.")}
    return {(vector, task): value[i].item() for vector, value in vectors.items() for i, task in enumerate(names)}


@cells("reordered", "sharded")
def test_a_sharded_checkpoint_of_reordered_tasks_is_read_by_name(found):
    ours, theirs = found("reordered"), found("sharded")["first"]
    assert "task_weighting.offset" in ours["state"]
    assert by_name(ours, ("kind", "depth", "width")) == by_name(theirs, ("depth", "width", "kind"))
    assert ours["sigma"] == theirs["sigma"]


@cells("tuned")
@pytest.mark.filterwarnings("ignore:the checkpoint knows the tasks")
def test_a_full_checkpoint_of_other_tasks_is_read_by_name_and_then_sharded(found):
    assert_as_one(found("tuned"), tuned(found.folder / FULL, 1), 1e-12)


@cells("sharded", "full")
def test_a_folder_of_shards_becomes_the_full_checkpoint(found, tmp_path):
    dcp_to_torch_save(found.folder / SHARDS, tmp_path / "whole.pt")
    whole, full = (torch.load(path)["state_dict"] for path in (tmp_path / "whole.pt", found.folder / FULL))
    torch.testing.assert_close(whole, dict(full), rtol=0, atol=0)


@cells("sharded, of before", "sharded")
def test_a_folder_of_shards_of_before_becomes_a_file_that_loads_strictly_and_by_name(found, tmp_path):
    dcp_to_torch_save(found.folder / OLD_SHARDS, tmp_path / "whole.pt")
    net = Named("kind", "depth", "width").double()
    state = torch.load(tmp_path / "whole.pt")["state_dict"]
    assert state["task_weighting._extra_state"] == {"version": 1, "tasks": ["depth", "width", "kind"]}
    assert net.load_state_dict(state) == ([], [])
    assert by_name({"state": state_of(net)}, ("kind", "depth", "width")) == by_name(
        found("sharded")["first"], ("depth", "width", "kind")
    )


@cells("{case}")
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("forgotten", r"RuntimeError: .*add `fully_shard\(self.task_weighting, mesh=self.device_mesh"),
        ("forgotten in part", r"sharded all or none.*: found trunk\.weight, trunk\.bias left out; give their modules"),
        ("removed", "Size mismatch"),
        ("resumed in another order", "RuntimeError: a checkpoint of other tasks cannot be resumed"),
        ("loaded one by one", "RuntimeError: .*today's order, width, depth, kind: found depth, width, kind; register"),
    ],
)
def test_what_would_go_wrong_unseen_is_refused(case, message, found):
    assert re.search(message, found(case), flags=re.DOTALL), found(case)
