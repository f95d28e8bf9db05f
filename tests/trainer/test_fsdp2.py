"""Sharded by FSDP2 (and, in plain torch, by FSDP1), two processes train as one does on the whole batch."""

import re

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests._ranks import rank_environments, results
from tests.trainer._fsdp2 import FSDP1, SAME, fit, seeded, straight, tuned
from tests.trainer._sharded import Named

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, pytest.mark.timeout(700)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fsdp2")


@pytest.fixture(scope="module")
def two(folder):
    """What two processes made, all cases in one launch."""
    return results("tests.trainer._fsdp2", folder / "results.pt", rank_environments(), timeout=500)


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


@pytest.mark.parametrize("case", [*SAME, *FSDP1])
def test_two_processes_train_as_one(case, two):
    """State, σ, every row of the monitor, and what validation logged."""
    one = {**SAME, **FSDP1}[case](1)
    assert_as_one(two[case], one, 1e-6 if case.endswith("float32") else 1e-12)
    assert bool(one["logged"]) is ("meta" in case or "validated" in case)


@pytest.mark.parametrize("kind", ["sharded", "full"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind, two):
    assert_as_one(two["straight"], straight(1), 1e-12)
    assert_as_one(two[kind], two["straight"], 0.0)


def test_a_full_checkpoint_resumes_on_one_process(folder, two):
    resumed = fit(seeded(Named, seed=5).double(), 1, max_epochs=2, ckpt_path=folder / "full.ckpt")
    assert_as_one(resumed, two["straight"], 1e-12)


def test_log_variances_stay_float32_under_bf16(two):
    state = two["bf16-true"]["state"]
    assert state["trunk.weight"].dtype is torch.bfloat16
    assert state["task_weighting.offset"].dtype is torch.float32
    assert two["bf16-true"]["sigma"] == pytest.approx(two["UncertaintyWeighting, float64"]["sigma"], rel=0.02)


def by_name(outcome, names):
    """The vectors of a weighting, by task."""
    vectors = {name: value for name, value in outcome["state"].items() if name.startswith("task_weighting.")}
    return {(vector, task): value[i].item() for vector, value in vectors.items() for i, task in enumerate(names)}


def test_a_sharded_checkpoint_of_reordered_tasks_is_read_by_name(two):
    assert "task_weighting.offset" in two["reordered"]["state"]
    ours, theirs = two["reordered"], two["sharded"]["first"]
    assert by_name(ours, ("kind", "depth", "width")) == by_name(theirs, ("depth", "width", "kind"))
    assert ours["sigma"] == theirs["sigma"]


@pytest.mark.filterwarnings("ignore:the checkpoint knows the tasks")
def test_a_full_checkpoint_of_other_tasks_is_read_by_name_and_then_sharded(folder, two):
    assert_as_one(two["tuned"], tuned(folder / "full.ckpt", 1), 1e-12)


def test_a_folder_of_shards_becomes_the_full_checkpoint(folder, two):
    dcp_to_torch_save(folder / "sharded.ckpt", folder / "whole.pt")
    whole, full = (torch.load(folder / name)["state_dict"] for name in ("whole.pt", "full.ckpt"))
    assert whole.pop("task_weighting._extra_state") == full.pop("task_weighting._extra_state")
    torch.testing.assert_close(whole, dict(full), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("forgotten", r"RuntimeError: .*add `fully_shard\(self.task_weighting, mesh=self.device_mesh"),
        ("forgotten in part", r"sharded all or none.*: found trunk\.weight, trunk\.bias left out; give their modules"),
        ("removed", "Size mismatch"),
        ("resumed in another order", "RuntimeError: a checkpoint of other tasks cannot be resumed"),
        ("names are lost", "RuntimeError: .*another order than width, depth, kind, and its task names are lost"),
    ],
)
def test_what_would_go_wrong_unseen_is_refused(case, message, two):
    assert re.search(message, two[case], flags=re.DOTALL), two[case]
