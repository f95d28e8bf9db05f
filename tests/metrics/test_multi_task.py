import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from lightning_uncertainty.metrics import MeanRank, MultiTaskGain
from tests.metrics._other_rank import NAN, with_other_rank

VECTORS = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))


def gain_of(baselines, higher, *values, **options):
    metric = MultiTaskGain(baselines, higher, **options)
    for table in values:
        metric.update(table)
    return metric.compute().item()


def test_gain_of_kendalls_table():
    vector = VECTORS["metric.delta_m.kendall_table1"]
    inputs = vector["inputs"]
    higher = {task: not lower for task, lower in inputs["lower_is_better"].items()}
    found = gain_of(inputs["single_task"], higher, inputs["multi_task"])
    assert found == pytest.approx(vector["expected"]["delta_m_percent_maninis"], rel=1e-6)


POSITIVE = st.floats(0.1, 100)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(POSITIVE, POSITIVE, st.booleans()), min_size=1, max_size=4), POSITIVE)
def test_gain_is_of_no_unit_and_zero_for_the_baselines(rows, unit):
    names = [f"task{i}" for i in range(len(rows))]
    baselines, values, higher = (dict(zip(names, column, strict=True)) for column in zip(*rows, strict=True))
    by_hand = sum((1 if h else -1) * (m - b) / b for b, m, h in rows) / len(rows) * 100
    assert gain_of(baselines, higher, values) == pytest.approx(by_hand, rel=1e-4, abs=1e-3)
    rescaled = [{name: unit * value for name, value in table.items()} for table in (baselines, values)]
    assert gain_of(rescaled[0], higher, rescaled[1]) == pytest.approx(by_hand, rel=1e-4, abs=1e-3)
    assert gain_of(baselines, higher, baselines) == pytest.approx(0.0, abs=1e-4)


def test_metrics_of_a_task_are_averaged_inside_it_first():
    baselines = {"normals": {"mean": 10.0, "median": 20.0, "within": 0.5}, "depth": 1.0}
    higher = {"normals": {"mean": False, "median": False, "within": True}, "depth": False}
    values = {"normals": {"mean": 9.0, "median": 16.0, "within": 0.65}, "depth": 1.1}
    assert gain_of(baselines, higher, values) == pytest.approx(((10 + 20 + 30) / 3 - 10) / 2, rel=1e-5)
    assert gain_of(baselines, higher, values, auxiliary=["depth"]) == pytest.approx(20, rel=1e-5)


def test_a_direction_of_a_task_is_that_of_its_metrics_and_a_negative_baseline_keeps_it():
    assert gain_of({"a": {"x": 2.0, "y": -4.0}}, {"a": True}, {"a": {"x": 3.0, "y": -2.0}}) == 50.0


def test_gain_of_several_updates_is_that_of_their_mean_and_adds_up_over_ranks():
    higher = {"a": True, "b": False}
    one, other = {"a": 2.0, "b": 3.0}, {"a": torch.tensor(4.0), "b": 1.0}
    both = gain_of({"a": 1.0, "b": 4.0}, higher, one, other)
    assert both == pytest.approx(gain_of({"a": 1.0, "b": 4.0}, higher, {"a": 3.0, "b": 2.0}))
    metric = with_other_rank(MultiTaskGain({"a": 1.0, "b": 4.0}, higher), torch.tensor([4.0, 1.0]), torch.tensor(1))
    metric.update(one)
    assert metric.compute().item() == pytest.approx(both)


def test_gain_shows_a_diverged_network():
    assert math.isnan(gain_of({"a": 1.0}, {"a": True}, {"a": NAN}))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: MultiTaskGain({"a": 0.0}, {"a": True}), "finite and not zero.*found 0 for a;"),
        (lambda: MultiTaskGain({"a": {"x": NAN}}, {"a": True}), "found nan for a/x"),
        (lambda: MultiTaskGain({"a": 1.0, "b": 2.0}, {"a": True}), "True or False .*found nothing for b"),
        (lambda: MultiTaskGain({"a": 1.0}, {"a": True}, auxiliary=["a"]), "found all of them auxiliary"),
        (lambda: MultiTaskGain({"a": 1.0}, {"a": True}, auxiliary=["c"]), r"auxiliary should .*\(a\): found c"),
        (lambda: gain_of({"a": 1.0}, {"a": True}, {"a": 1.0, "b": 2.0}), "those of a: found a, b"),
        (lambda: gain_of({"a": 1.0}, {"a": True}, {"a": {"x": 1.0}}), "those of a: found a/x"),
        (lambda: MeanRank([], {"a": True}), "named, once each: found none"),
        (lambda: MeanRank(["m", "m"], {"a": True}), "named, once each: found m, m"),
        (lambda: rank_of({"a": {}}, m={"a": 1.0}), "found nothing for a"),
        (lambda: rank_of({"a": True}, m={"a": 1.0}, n={"b": 1.0}), "those of a: found b"),
        (lambda: MeanRank(["m"], {"a": True}).update({"m": {"a": 1}, "n": {"a": 1}}), r"of the models \(m\): found n"),
        (lambda: MeanRank(["m", "n"], {"a": True}).update({"m": {"a": 1}}), "of every model .*: found n"),
        (lambda: rank_of({"a": True}, auxiliary=["a"], m={"a": 1.0}), "one task at least: found none"),
    ],
)
def test_gains_and_ranks_refuse_what_has_no_meaning(make, expected):
    with pytest.raises(ValueError, match=expected):
        make()


def rank_of(higher, auxiliary=(), **values):
    metric = MeanRank(values, higher, auxiliary=auxiliary)
    metric.update(values)
    return metric.compute().tolist()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=2, max_size=6))
def test_mean_rank_is_scipys(table):
    higher = {"a": True, "b": False, "c": False}
    models = {f"m{i}": dict(zip(higher, map(float, row), strict=True)) for i, row in enumerate(table)}
    columns = [[row[j] * (-1 if up else 1) for row in table] for j, up in enumerate(higher.values())]
    expected = [sum(ranks) / 3 for ranks in zip(*(rankdata(column) for column in columns), strict=True)]
    found = rank_of(higher, **models)
    assert found == pytest.approx(expected, rel=1e-6)
    assert sum(found) == pytest.approx(len(table) * (len(table) + 1) / 2, rel=1e-6)


def test_mean_rank_averages_inside_tasks_and_leaves_auxiliary_ones_out():
    values = {
        "m": {"a": {"x": 1.0, "y": 1.0, "z": 2.0}, "b": 1.0, "help": 9.0},
        "n": {"a": {"x": 2.0, "y": 2.0, "z": 1.0}, "b": 0.0, "help": 0.0},
    }
    found = rank_of({"a": True, "b": True, "help": True}, auxiliary=["help"], **values)
    assert found == pytest.approx([((2 + 2 + 1) / 3 + 1) / 2, ((1 + 1 + 2) / 3 + 2) / 2])


@pytest.mark.parametrize("up", [True, False])
def test_who_diverged_is_last(up):
    assert rank_of({"a": up}, m={"a": NAN}, n={"a": 1.0}, o={"a": 2.0})[0] == 3.0


def test_ranks_of_updates_are_averaged():
    metric = MeanRank(["m", "n"], {"a": True})
    metric.update({"m": {"a": 1.0}, "n": {"a": 0.0}})
    metric.update({"n": {"a": 1.0}, "m": {"a": 1.0}})
    assert metric.compute().tolist() == [1.25, 1.75]
