"""The charts are the run's curves, no more and no less."""

import json
import math

import pytest

from lightning_uncertainty.dashboards import Run
from lightning_uncertainty.dashboards.report._charts import charts, number
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
