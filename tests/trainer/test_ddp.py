"""Two processes train as one does on the same micro-batches, under every kind of DDP; none of them hangs."""

import math
import sys
import time

import pytest
import torch

from lightning_uncertainty.dashboards import read_run
from tests._ranks import STEPS, batch_of, rank_environments, results, run
from tests.trainer._ddp import BAD, CELLS, MODES, NONFINITE, WEIGHTINGS, fit_one, make

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks") / "out.pt"
    return results("tests.trainer._ddp_ranks", out, rank_environments(), timeout=700)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """A script that ran under ddp_spawn: the folder it wrote to, and what it had at its end."""
    folder = tmp_path_factory.mktemp("script")
    return folder, results("tests.trainer._ddp_spawn", folder / "out.pt", [{}], timeout=400)


def gap(one, two):
    """The largest difference relative to each tensor's largest entry; log-variances are exponents, so of at least 1."""
    assert one.keys() == two.keys()
    gaps = {}
    for name, value in one.items():
        value, other = value.double(), two[name].double()
        assert torch.equal(value.isnan(), other.isnan()), name
        least = 1.0 if name.startswith("task_weighting") else 1e-3
        scale = value.nan_to_num().abs().max().clamp(min=least)
        gaps[name] = ((value - other).nan_to_num().abs() / scale).max().item()
    return max(gaps.values(), default=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "weighting"), [pytest.param(*cell, id="-".join(cell)) for cell in CELLS])
def test_two_processes_equal_one(mode, weighting, request):
    """Unequal counts, rows and validation; labels on one rank, on none and in turn; Dealt looks at ranks and calls."""
    one, tolerance = fit_one(mode, weighting), MODES[mode].tolerance
    if mode == "spawn":
        state = request.getfixturevalue("script")[1]["states"][weighting]
    else:
        two = request.getfixturevalue("ranks")[mode, weighting]
        state = two.state
        assert gap(one.optimizer, two.optimizer) <= tolerance
        watched = [key for key in one.logged if not key.startswith("val/")]
        assert {f"loss/{task}" for task in ("depth", "width", "kind")} <= set(watched)
        for key in watched:
            assert two.logged[key] == pytest.approx(one.logged[key], rel=1e-5, abs=1e-6), key
    assert gap(one.state, state) <= tolerance
    before = make(mode, weighting).state_dict()
    assert all(not torch.equal(before[name], state[name].float()) for name in state if name.endswith("weight"))


@pytest.mark.parametrize("mode", ["clipping", "accumulation", "adam", "means"])
def test_a_mode_changes_what_is_trained(mode):
    assert gap(fit_one(mode, "UncertaintyWeighting").state, fit_one("ddp", "UncertaintyWeighting").state) > 1e-3


@pytest.mark.slow
def test_validation_is_a_mean_over_the_labels_of_all_ranks_with_uneven_batches(ranks):
    """Rank 1 has one batch more."""
    two, net = ranks["ddp", "UncertaintyWeighting"], make("ddp", "UncertaintyWeighting").double()
    net.load_state_dict(two.state)
    seen = [(step, rows) for rows, steps in ((slice(6), 3), (slice(6, 12), 4)) for step in range(steps)]
    parts = [{name: column[rows] for name, column in batch_of(step).items()} for step, rows in seen]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    with torch.no_grad():
        outputs = net.task_outputs(net.trunk(whole["x"].double()).tanh())
    means = {name: (total / count).item() for name, (total, count) in net.task_losses(outputs, whole).items()}
    for name, mean in means.items():
        assert two.logged[f"val/{name}/loss"] == pytest.approx(mean, rel=1e-6)
    balanced = sum(math.log(mean) / 2 for mean in means.values())
    assert two.logged["val/balanced_loss"] == pytest.approx(balanced, rel=1e-6)
    error = (outputs["depth"][:, 0] - whole["depth"]).abs().nanmean().item()
    assert two.logged["val/depth/MeanAbsoluteError"] == pytest.approx(error, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("strategy", NONFINITE)
def test_a_step_that_is_not_finite_on_one_rank_never_was_on_any(strategy, weighting, ranks):
    """To the last bit: network, log-variances, buffers, Adam's moments and step counts; the first step is among."""
    skipped, never = (ranks[kind, strategy, weighting] for kind in ("skipped", "never"))
    for one, two in ((skipped.state, never.state), (skipped.optimizer, never.optimizer)):
        assert one.keys() == two.keys()
        assert [name for name in one if not torch.equal(bits(one[name]), bits(two[name]))] == []
    assert {f"{step:g}" for name, step in skipped.optimizer.items() if name.endswith("step")} == {f"{STEPS - len(BAD)}"}


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", NONFINITE)
def test_all_ranks_name_the_task_whose_loss_is_not_finite_on_one(strategy, ranks):
    for message in ranks["raised", strategy]:
        assert message.startswith("the loss of task 'depth' should be finite")


@pytest.mark.slow
def test_steps_of_accumulated_batches_are_not_skipped_on_several_processes(ranks):
    for message in ranks["accumulated"]:
        assert message.startswith("on_nonfinite='skip_step' should have whole steps to skip")


@pytest.mark.slow
def test_what_comes_back_from_ddp_spawn(script):
    """Weights, σ and the last logged values; the monitor's history stays in the processes, its log on disk."""
    folder, left = script
    one = fit_one("spawn", "UncertaintyWeighting")
    s = one.state["task_weighting.log_variance"]
    assert left["sigma"] == pytest.approx(dict(zip(("depth", "width", "kind"), s.div(2).exp().tolist(), strict=True)))
    assert left["fitted"].logged["sigma/depth"] == pytest.approx(left["sigma"]["depth"])
    assert left["fitted"].rows == 0
    assert one.rows == STEPS
    rows = [row for row in read_run(folder / "csv").rows if "sigma/depth" in row]
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert rows[-1]["sigma/depth"] == pytest.approx(left["sigma"]["depth"])


def test_ranks_that_hang_or_fail_are_ended_and_what_they_said_is_shown(tmp_path):
    code = "import os, sys, time; rank = os.environ['RANK']; print('here is', rank, flush=True); "
    hang, fail = code + "time.sleep(60)", code + "sys.exit(3) if rank == '1' else time.sleep(60)"
    started = time.monotonic()
    with pytest.raises(AssertionError, match=r"rank 0, code None\nhere is 0[\s\S]*rank 1, code None\nhere is 1"):
        run([sys.executable, "-c", hang], rank_environments(), tmp_path, timeout=3)
    with pytest.raises(AssertionError, match=r"rank 1, code 3\nhere is 1"):
        run([sys.executable, "-c", fail], rank_environments(), tmp_path, timeout=60)
    assert time.monotonic() - started < 30
