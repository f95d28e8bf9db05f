"""A run knows its tasks, from its config or from its keys."""

import pytest

from lightning_uncertainty.dashboards import Run

ROWS = [
    {"step": 19, "val/depth/loss": 0.5, "val/balanced_loss": -1.0},
    {"step": 9, "loss_share/kind": 0.4, "weight/kind": 2.0, "loss_share/depth": 0.6},
    {"step": 19, "loss_share/kind": 0.3, "loss_share/depth": 0.7, "lr": 0.1},
    {"step": 19, "test/depth/MeanAbsoluteError": 0.4},
]


def test_tasks_and_prefix_are_found_from_the_keys_or_the_config():
    run = Run("run", ROWS, {})
    assert (run.tasks, run.prefix, run.weighting, run.likelihoods) == (("kind", "depth"), "", "", {})
    about = {"weighting": "Fixed()", "prefix": "", "likelihood": {"depth": "laplace", "kind": "categorical"}}
    known = Run("run", ROWS, {"uncertainty": about})
    assert (known.tasks, known.weighting) == (("depth", "kind"), "Fixed()")
    assert known.likelihoods == about["likelihood"]
    assert known.sigma_is == {}


def test_an_entry_of_the_same_name_that_is_not_the_monitors_is_left_alone():
    assert Run("run", ROWS, {"uncertainty": 0.3}).tasks == ("kind", "depth")
    assert Run("run", ROWS, {"uncertainty": {"likelihood": "laplace"}}).tasks == ("kind", "depth")


@pytest.mark.parametrize("logger", ["", "mine-"])
def test_prefixes_of_monitor_and_logger_are_seen_through(logger):
    others = {"other/weight/layer": 5.0, "other/weight/head": 6.0}
    keys = {**others, "uw/weight/depth": 2.0, "val/depth/loss": 3.0, "val/balanced_loss": 4.0}
    rows = [{"step": 0, **{logger + key: value for key, value in keys.items()}}]
    run = Run("run", rows, {"uncertainty": {"prefix": "uw/"}})
    assert (run.prefix, run.tasks) == (logger + "uw/", ("depth",))
    assert run.training("weight", "depth").values == [2.0]
    assert {where: curve.values for where, curve in run.held_out.items()} == {("val", "depth", "loss"): [3.0]}
    assert run.balanced["val"].values == [4.0]


def test_curves_go_by_step_and_take_the_last_of_several_values():
    rows = [*ROWS, {"step": 9, "loss_share/kind": 0.9}, {"step": 2, "loss_share/kind": 0.1}]
    curve = Run("run", rows, {}).training("loss_share", "kind")
    assert (curve.steps, curve.values) == ([2, 9, 19], [0.1, 0.9, 0.3])
    assert Run("run", rows, {}).last_step == 19
    assert Run("run", rows, {}).training("sigma", "kind") is None


def test_held_out_curves_are_found_by_stage_task_and_metric():
    found = Run("run", ROWS, {}).held_out
    assert list(found) == [("test", "depth", "MeanAbsoluteError"), ("val", "depth", "loss")]


def test_a_run_without_rows_or_without_our_keys_is_refused():
    for rows in ([], [{"step": 3}]):
        with pytest.raises(ValueError, match="needs a run with logged rows: found none in birds; wait for its"):
            Run("birds", rows, {})
    with pytest.raises(ValueError, match=r"UncertaintyMonitor, .*found lr, train_loss in birds; add Uncertainty"):
        Run("birds", [{"step": 1, "lr": 0.1, "train_loss": 2.0}], {})
    with pytest.raises(ValueError, match="found k0, k1, k2, k3, k4, k5, k6, k7 and 12 more in birds"):
        Run("birds", [{"step": 1, **{f"k{index}": 0.1 for index in range(20)}}], {})


MISSING, EARLY = "add UncertaintyMonitor", "wait for its first row, or fit with log_every_n_steps of no more than"


@pytest.mark.parametrize(
    ("keys", "config", "told"),
    [
        (["val/depth/loss", "lr"], {"uncertainty": {"prefix": ""}}, {EARLY}),  # the monitor was there
        (["val/depth/loss", "val/balanced_loss"], {}, {EARLY, MISSING}),  # who knows
        (["mine-test/depth/loss"], {}, {EARLY, MISSING}),
        (["val/depth/loss", "train_loss"], {}, {MISSING}),
    ],
)
def test_a_run_that_is_too_short_is_not_told_that_a_monitor_is_missing(keys, config, told):
    with pytest.raises(ValueError, match="a report needs a training row of UncertaintyMonitor") as refused:
        Run("birds", [{"step": 1, **dict.fromkeys(keys, 0.1)}], config)
    assert {part for part in (MISSING, EARLY) if part in str(refused.value)} == told
