"""The charts are the run's curves, no more and no less."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_uncertainty.dashboards import Run
from lightning_uncertainty.dashboards.report._charts import charts, extremes, number
from tests.dashboards.report._runs import by_hand


def drawn(run):
    return {chart.id: chart for chart in charts(run)}


def test_every_chart_of_a_whole_run_is_there_with_its_curves():
    found = drawn(by_hand())
    metrics = [f"metric-task_{index}-MeanAbsoluteError" for index in range(2)]
    assert list(found) == [
        "sigma",
        "sigma_gap",
        "weight",
        "loss_share",
        "loss",
        "held_out_loss",
        "balanced_loss",
        *metrics,
    ]
    assert [trace["y"] for trace in found["loss"].traces] == [
        [1.0, 0.5, 0.333333, 0.25, 0.2],
        [10.0, 5.0, 3.33333, 2.5, 2.0],
    ]
    assert {chart.axis for chart in found.values()} == {"log", "gap", "share", "linear"}
    assert found["balanced_loss"].traces[0]["y"] == [0, -0.5, -1.0, -1.5, -2.0]
    assert found[metrics[1]].caption == "Latest: 4.000 (val)."
    assert all(chart.caption.endswith(".") and ". " not in chart.caption for chart in found.values())


def test_the_optimum_is_sigma_over_one_plus_gap():
    traces = drawn(by_hand())["sigma"].traces
    assert [(trace["task"], trace["look"], trace["y"][0]) for trace in traces] == [
        (0, "line", 2.0), (1, "line", 3.0), (0, "dotted", 1.6), (1, "dotted", 2.4)
    ]  # fmt: skip
    assert drawn(by_hand())["sigma_gap"].traces[0]["y"] == [1.25] * 5
    odd = [{"step": step, "weight/a": 1.0, "sigma/a": 2.0, "sigma_gap/a": gap} for step, gap in enumerate([1.0, -1.0])]
    assert drawn(Run("odd", odd, {}))["sigma"].traces[1]["x"] == [0]
    assert drawn(Run("odd", odd, {}))["sigma"].traces[1]["y"] == [1.0]


def test_charts_without_keys_are_left_out():
    fixed = Run("fixed", [{"step": 0, "weight/a": 1.0, "loss/a": 3.0, "loss_share/a": 1.0}], {})
    assert list(drawn(fixed)) == ["weight", "loss_share", "loss"]


def test_stages_of_a_metric_share_a_chart_and_metrics_of_other_units_do_not():
    row = {
        "step": 0,
        "weight/a": 1.0,
        "val/a/Error": 2.0,
        "test/a/Error": 3.0,
        "train/a/Error": 4.0,
        "val/a/Accuracy": 0.5,
    }
    found = drawn(Run("run", [row], {}))
    assert [(trace["name"], trace["look"]) for trace in found["metric-a-Error"].traces] == [
        ("a, train", "dashed"), ("a, val", "line"), ("a, test", "points")
    ]  # fmt: skip
    assert len(found["metric-a-Accuracy"].traces) == 1


def test_shares_add_up_to_100_where_tasks_come_and_go_and_lines_are_thinned():
    rows = []
    for step in range(5000):
        here = ["a", "b"] if step % 7 == 0 else ["b"]
        rows.append({"step": step, **{f"loss_share/{name}": 1 / len(here) for name in here}, "loss/b": step})
    found = drawn(Run("run", rows, {}))
    a, b = found["loss_share"].traces
    at = dict(zip(a["x"], a["y"], strict=True))
    assert all(value + at.get(step, 0) == pytest.approx(100) for step, value in zip(b["x"], b["y"], strict=True))
    assert set(a["x"]) < set(b["x"])
    line = found["loss"].traces[0]
    assert len(line["x"]) <= 1001
    assert (line["x"][0], line["x"][-1]) == (0, 4999)


def test_a_spike_of_one_row_is_drawn_wherever_it_is():
    rows, spiked = 5003, (0, 777, 2500, 4998, 5002)
    for name, spike in (("loss", 50.0), ("val/a/loss", -3.0), ("balanced", math.nan)):
        key = {"loss": "loss/a", "balanced": "val/balanced_loss"}.get(name, name)
        logged = [{"step": step, "weight/a": 1.0, key: spike if step in spiked else 1.0} for step in range(rows)]
        chart = {"loss": "loss", "balanced": "balanced_loss"}.get(name, "held_out_loss")
        (trace,) = drawn(Run("run", logged, {}))[chart].traces
        at = dict(zip(trace["x"], trace["y"], strict=True))
        assert {at.get(step, 1.0) for step in spiked} == {None if math.isnan(spike) else spike}, name
        assert len(at) <= 1020


def test_spikes_of_a_share_are_steps_of_every_task():
    rows = [{"step": step, "loss_share/a": 0.9 if step == 3001 else 0.1, "loss_share/b": 0.1} for step in range(6000)]
    rows = [{**row, "loss_share/b": 1 - row["loss_share/a"]} for row in rows]
    a, b = drawn(Run("run", rows, {}))["loss_share"].traces
    assert a["x"] == b["x"]
    assert len(a["x"]) <= 1010
    assert a["y"][a["x"].index(3001)] == 90
    assert b["y"][b["x"].index(3001)] == pytest.approx(10)


@given(st.lists(st.floats(width=32), min_size=1, max_size=300), st.integers(1, 40))
def test_thinned_values_reach_as_far_as_all(values, bins):
    kept = extremes(np.array(values), bins).tolist()
    finite = [value for value in values if math.isfinite(value)]
    left = [values[index] for index in kept if math.isfinite(values[index])]
    assert (kept[0], kept[-1]) == (0, len(values) - 1)
    assert kept == sorted(set(kept))
    assert len(kept) <= 3 * bins + 2
    if finite:
        assert (min(left), max(left)) == (min(finite), max(finite))
    assert (len(left) < len(kept)) == (len(finite) < len(values))


@pytest.mark.parametrize(
    ("losses", "axis"),
    [
        ({"a": [2.0, 1.0], "b": [300.0, 0.1]}, "log"),
        ({"a": [2.0, -1.0], "b": [3.0, 0.1]}, "linear"),  # heteroscedastic
        ({"a": [2.0, 0.0]}, "linear"),
        ({"a": [0.0, 0.0]}, "linear"),
        ({"a": [2.0, -1.0], "b": [4e5, 3e5]}, "symlog"),  # beside one in grams
        ({"a": [2.0, math.nan], "b": [math.inf, 3.0]}, "log"),
    ],
)
@pytest.mark.parametrize("kind", ["loss", "sigma", "weight", "held_out_loss"])
def test_no_value_is_on_an_axis_that_leaves_it_out(kind, losses, axis):
    key = "val/{}/loss" if kind == "held_out_loss" else kind + "/{}"
    rows = [
        {
            "step": step,
            "loss_share/a": 1.0,
            "loss_share/b": 0.0,
            **{key.format(task): values[step] for task, values in losses.items()},
        }
        for step in range(2)
        if all(step < len(values) for values in losses.values())
    ]
    assert drawn(Run("run", rows, {}))[kind].axis == axis


def test_numbers_that_json_lacks_are_gaps():
    rows = [{"step": step, "weight/a": value} for step, value in enumerate([1.0, math.nan, math.inf, -math.inf])]
    (chart,) = charts(Run("run", rows, {}))
    assert json.loads(json.dumps(chart.traces[0]["y"], allow_nan=False)) == [1.0, None, None, None]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (9999.6, "10,000"), (1e7, "1 × 10⁷"), (-3.14159, "-3.142"), (0.99999, "1.000"), (math.inf, "inf")],
)
def test_numbers_are_written_for_readers(value, text):
    assert number(value) == text
