"""Two processes train as one does on the same micro-batches, under every kind of DDP; none of them hangs."""

import math

import pytest
import torch

from lightning_uncertainty.dashboards import read_run
from tests._ranks import STEPS, batch_of
from tests.trainer._ddp import BAD, CELLS, FIRST, MODES, NONFINITE, WEIGHTINGS, accumulated, fit_one, make
from tests.trainer._ddp_spawn import LEFT

RANKS, SPAWN = "tests.trainer._ddp", "tests.trainer._ddp_spawn"
SMOKE = [  # they see that labels are counted over ranks: in losses, steps, means, metrics, and where a head is idle
    ("ddp", FIRST),
    ("accumulation", FIRST),
    ("skipped_heads", FIRST),
    ("means", "FixedWeighting"),
    ("float32", "DynamicTaskPrioritization(metric)"),
]


def cell(mode, weighting):
    """A cell as a parameter, which names where its result comes from."""
    own = (SPAWN, weighting) if mode == "spawn" else (RANKS, f"{mode}-{weighting}")
    marks = [pytest.mark.cells(*own), *[pytest.mark.smoke] * ((mode, weighting) in SMOKE)]
    return pytest.param(mode, weighting, id=f"{mode}-{weighting}", marks=marks)


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


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode:UserWarning")
@pytest.mark.parametrize(("mode", "weighting"), [cell(*pair) for pair in CELLS])
def test_two_processes_equal_one(mode, weighting, found):
    """Unequal counts, rows and validation; labels on one rank, on none and in turn; Dealt looks at ranks and calls."""
    one, tolerance = fit_one(mode, weighting), MODES[mode].tolerance
    if mode == "spawn":
        state = found(weighting)
    else:
        two = found(f"{mode}-{weighting}")
        state = two.state
        assert gap(one.optimizer, two.optimizer) <= tolerance
        watched = [key for key in one.logged if not key.startswith("val/")]
        assert {f"loss/{task}" for task in ("depth", "width", "kind")} <= set(watched)
        for key in watched:
            assert two.logged[key] == pytest.approx(one.logged[key], rel=1e-5, abs=1e-6), key
    assert gap(one.state, state) <= tolerance
    before = make(mode, weighting).state_dict()
    assert all(not torch.equal(before[name], state[name].float()) for name in state if name.endswith("weight"))


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["clipping", "accumulation", "adam", "means"])
def test_a_mode_changes_what_is_trained(mode):
    assert gap(fit_one(mode, FIRST).state, fit_one("ddp", FIRST).state) > 1e-3


@pytest.mark.cells(RANKS, f"ddp-{FIRST}")
@pytest.mark.smoke
def test_validation_is_a_mean_over_the_labels_of_all_ranks_with_uneven_batches(found):
    """Rank 1 has one batch more."""
    two, net = found(f"ddp-{FIRST}"), make("ddp", FIRST).double()
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


@pytest.mark.cells(RANKS, "skipped-{strategy}-{weighting}", "never-{strategy}-{weighting}")
@pytest.mark.parametrize("weighting", [*WEIGHTINGS, "regularised"])
@pytest.mark.parametrize("strategy", NONFINITE)
def test_a_step_that_is_not_finite_on_one_rank_never_was_on_any(strategy, weighting, found):
    """To the last bit: network, log-variances, buffers, Adam's moments and step counts; the first step is among."""
    skipped, never = (found(f"{kind}-{strategy}-{weighting}") for kind in ("skipped", "never"))
    for one, two in ((skipped.state, never.state), (skipped.optimizer, never.optimizer)):
        assert one.keys() == two.keys()
        assert [name for name in one if not torch.equal(bits(one[name]), bits(two[name]))] == []
    assert {f"{step:g}" for name, step in skipped.optimizer.items() if name.endswith("step")} == {f"{STEPS - len(BAD)}"}


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.cells(RANKS, "raised-{strategy}")
@pytest.mark.parametrize("strategy", NONFINITE)
def test_all_ranks_name_the_task_whose_loss_is_not_finite_on_one(strategy, found):
    for message in found(f"raised-{strategy}"):
        assert message.startswith("the loss of task 'depth' should be finite")


@pytest.mark.cells(RANKS, "accumulated")
def test_of_accumulated_batches_those_that_are_skipped_are_silent_on_several_processes(found):
    two, one = found("accumulated"), accumulated(1)
    assert gap(two.state, one.state) < 1e-12


@pytest.mark.cells(SPAWN, FIRST)
def test_what_comes_back_from_ddp_spawn(found):
    """Weights, σ and the last logged values; the monitor's history stays in the processes, its log on disk."""
    left, one = found(LEFT), fit_one("spawn", FIRST)
    s = one.state["task_weighting.log_variance"]
    assert left["sigma"] == pytest.approx(dict(zip(("depth", "width", "kind"), s.div(2).exp().tolist(), strict=True)))
    assert left["fitted"].logged["sigma/depth"] == pytest.approx(left["sigma"]["depth"])
    assert left["fitted"].rows == 0
    assert one.rows == STEPS
    rows = [row for row in read_run(found.folder / "csv").rows if "sigma/depth" in row]
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert rows[-1]["sigma/depth"] == pytest.approx(left["sigma"]["depth"])
