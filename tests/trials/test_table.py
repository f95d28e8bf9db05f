import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics import MeanSquaredError

from lightning_uncertainty import MultiTaskModule, Task
from lightning_uncertainty.trials import Comparison, Measure, Trial
from tests.trials.test_comparing import run


def wide(tasks, weightings=("equal", "uncertainty"), metric="MeanAbsoluteError", seeds=3, scale=1.0):
    measures = tuple(Measure(task, metric, f"val/{task}/{metric}", False) for task in tasks)
    trials = [
        Trial(
            name,
            None,
            seed,
            "",
            [{m.key: scale * (1 + i + j / 7 + seed / 9) for j, m in enumerate(measures)}],
            {},
            0.0123,
            2**30,
        )
        for i, name in enumerate(weightings)
        for seed in range(seeds)
    ]
    return Comparison(tuple(trials), measures, (), weightings[0], None)


EIGHT = ["segmentation", "depth", "normals", "edges", "keypoints", "shading", "curvature", "reflectance"]


def widest(text):
    return max(map(len, text.splitlines()))


@pytest.mark.parametrize("rich", [True, False])
def test_eight_tasks_fit_and_the_legend_says_what_is_short(rich, monkeypatch):
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.box", None)
    text = wide(EIGHT).table()
    assert widest(text) <= 120
    assert "seg: segmentation" in text
    assert "all: MeanAbsoluteError" in text
    assert all(f"{task[:3]} ↓" in text for task in EIGHT)
    assert len([line for line in text.splitlines() if line.strip().startswith("equal")]) == 2  # tasks, and all of them
    assert "gain %" in text
    assert "mean rank" in text


def test_a_table_that_fits_keeps_its_names():
    text = wide(["depth", "kind"]).table()
    assert "depth MeanAbsoluteError ↓" in text
    assert "depth: " not in text


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text("abcd_", min_size=1, max_size=30), min_size=1, max_size=12, unique=True),
    st.lists(st.text("abcd ", min_size=1, max_size=150), min_size=2, max_size=4, unique=True),
    st.sampled_from([1e-9, 1.0, 1e12]),
)
def test_any_table_fits_and_holds_every_number(tasks, weightings, scale):
    found = wide(tasks, weightings, scale=scale)
    text = found.table()
    assert widest(text) <= 120
    for result in found.results:
        assert all(f"{mean.mean:.4g}" in text for mean in result.values.values())


def test_the_root_of_a_squared_error_is_called_so():
    def make(weighting):
        tasks = {
            "depth": Task("gaussian", head=nn.Linear(8, 1), metrics=MeanSquaredError(squared=False)),
            "other": Task("gaussian", head=nn.Linear(8, 1), target="depth", metrics=MeanSquaredError()),
        }
        return MultiTaskModule(nn.Linear(4, 8), tasks, weighting, inputs="x")

    found = run(make, seeds=[0], baseline=None)
    assert "depth RMSE ↓" in found.table()
    assert "other MeanSquaredError ↓" in found.table()
    assert found.measures[0].metric == "MeanSquaredError"  # as it is logged
    row = found.trials[0].rows[-1]
    assert row["val/depth/MeanSquaredError"] == pytest.approx(math.sqrt(row["val/depth/loss"]), rel=1e-4)
