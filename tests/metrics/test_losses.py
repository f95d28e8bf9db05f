import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from torchmetrics import Accuracy, MeanAbsoluteError, MeanSquaredError

from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.metrics import BalancedLoss, MeanRank, MultiTaskGain, ObservedMetric, TaskLoss
from lightning_uncertainty.tasks import Task
from lightning_uncertainty.tasks.metrics import TaskMetrics
from lightning_uncertainty.weightings import UncertaintyWeighting

NAN = float("nan")


def with_other_rank(metric, *states):
    """Let a metric believe in a second rank, whose states are given in the order they were declared."""
    others = iter(states)
    metric.distributed_available_fn = lambda: True
    metric.dist_sync_fn = lambda tensor, group=None: [tensor, next(others).reshape_as(tensor)]
    return metric


def test_task_loss_is_the_mean_over_scalars_not_over_batches():
    metric = TaskLoss()
    metric.update(torch.tensor(9.0), torch.tensor(1.0))
    metric.update(torch.tensor(3.0), torch.tensor(3.0))
    assert metric.compute().item() == 3.0  # the mean of means is 5


def test_task_loss_adds_up_over_ranks():
    metric = with_other_rank(TaskLoss(), torch.tensor(3.0), torch.tensor(3.0))
    metric.update(torch.tensor(9.0), torch.tensor(1.0))
    assert metric.compute().item() == 3.0


def test_task_loss_with_a_rank_that_saw_nothing():
    metric = with_other_rank(TaskLoss(), torch.tensor(3.0), torch.tensor(3.0))
    metric.update(torch.tensor(NAN), torch.tensor(0.0))
    assert metric.compute().item() == 1.0


def test_task_loss_ignores_batches_without_labels():
    metric = TaskLoss()
    metric.update(torch.tensor(NAN), torch.tensor(0.0))
    assert metric.compute() is None
    metric.update(torch.tensor(8.0), torch.tensor(4.0))
    metric.update(torch.tensor(NAN), torch.tensor(0.0))
    assert metric.compute().item() == 2.0


def test_task_loss_shows_a_diverged_network():
    metric = TaskLoss()
    metric.update(torch.tensor(NAN), torch.tensor(2.0))
    assert math.isnan(metric.compute().item())


def test_task_loss_starts_afresh_and_keeps_no_graph():
    metric = TaskLoss()
    metric.update(torch.tensor(8.0, requires_grad=True) * 1, torch.tensor(4.0))
    assert not metric.compute().requires_grad
    metric.reset()
    assert metric.sum.item() == metric.count.item() == 0.0
    metric.update(torch.tensor(1.0), torch.tensor(1.0))
    assert metric.compute().item() == 1.0


POWERS = {"depth": 0.5, "distance": 1.0, "semantics": 0.5}


def balanced(losses, powers=POWERS):
    metric = BalancedLoss(powers)
    metric.update(torch.tensor(losses), torch.ones(len(losses)))
    return metric.compute().item()


def test_balanced_loss_is_kendalls_objective_at_its_optimum_up_to_a_constant():
    tasks = {
        name: as_likelihood(kind) for name, kind in zip(POWERS, ["gaussian", "laplace", "categorical"], strict=True)
    }

    def objective(losses):  # every log-variance starts at the optimum
        return UncertaintyWeighting().bind(tasks)(torch.tensor(losses), torch.ones(3, dtype=torch.bool)).total.item()

    one, other = [4.0, 0.3, 0.7], [2.5, 0.5, 0.9]
    assert balanced(one) - balanced(other) == pytest.approx(objective(one) - objective(other), rel=1e-5)


def test_balanced_loss_only_shifts_with_units():
    one, other = [4.0, 0.3, 0.7], [2.5, 0.5, 0.9]
    metres_to_millimetres = [1e6, 1e3, 1.0]
    scaled = [[x * k for x, k in zip(losses, metres_to_millimetres, strict=True)] for losses in (one, other)]
    shifts = balanced(scaled[0]) - balanced(one), balanced(scaled[1]) - balanced(other)
    assert shifts[0] == pytest.approx(shifts[1], rel=1e-5)
    assert shifts[0] == pytest.approx(0.5 * math.log(1e6) + math.log(1e3), rel=1e-5)


def test_balanced_loss_is_the_log_of_the_mean():
    metric = BalancedLoss({"depth": 1.0})
    metric.update(torch.tensor([1.0]), torch.tensor([1.0]))
    metric.update(torch.tensor([21.0]), torch.tensor([3.0]))
    assert metric.compute().item() == pytest.approx(math.log(22 / 4))


def test_balanced_loss_adds_up_over_ranks():
    metric = with_other_rank(BalancedLoss({"depth": 1.0}), torch.tensor([21.0]), torch.tensor([3.0]))
    metric.update(torch.tensor([1.0]), torch.tensor([1.0]))
    assert metric.compute().item() == pytest.approx(math.log(22 / 4))


def test_balanced_loss_adds_a_normalised_loss_as_it_is():
    metric = BalancedLoss({"depth": 0.5, "mass": 2.0}, normalised=["mass"])
    metric.update(torch.tensor([6.0, -9.0]), torch.tensor([2.0, 3.0]))
    assert metric.compute().item() == pytest.approx(0.5 * math.log(3.0) + 2.0 * -3.0)
    metric.reset()
    metric.update(torch.tensor([0.0, -9.0]), torch.tensor([0.0, 3.0]))
    assert metric.compute().item() == pytest.approx(-6.0)


def test_balanced_loss_of_a_perfect_task_is_finite():
    assert math.isfinite(balanced([0.0, 1.0, 1.0]))


def test_balanced_loss_leaves_out_tasks_without_labels_and_says_so_once():
    metric = BalancedLoss(POWERS)
    metric.update(torch.tensor([NAN, 5.0, NAN]), torch.tensor([0.0, 2.0, 0.0]))
    assert metric.compute().item() == pytest.approx(math.log(2.5))
    with pytest.warns(UserWarning, match="no label of depth, semantics in this evaluation"):
        metric.reset()
    metric.update(torch.tensor([NAN, 1.0, NAN]), torch.tensor([0.0, 2.0, 0.0]))
    assert metric.compute().item() == pytest.approx(math.log(0.5))
    metric.reset()  # no second warning: it would be an error here


def test_balanced_loss_does_not_warn_of_tasks_whose_labels_come_later_in_the_epoch():
    metric = BalancedLoss(POWERS)
    for sums, counts in (([4.0, NAN, NAN], [1.0, 0.0, 0.0]), ([NAN, 1.0, 1.0], [0.0, 1.0, 1.0])):
        metric.update(torch.tensor(sums), torch.tensor(counts))
        value = metric.compute()
    assert value.item() == pytest.approx(0.5 * math.log(4.0))
    metric.reset()


def test_balanced_loss_of_nothing_is_none():
    metric = BalancedLoss({"depth": 0.5})
    metric.update(torch.tensor([NAN]), torch.tensor([0.0]))
    assert metric.compute() is None
    with pytest.warns(UserWarning, match="no label of depth"):
        metric.reset()


def test_balanced_loss_with_all_tasks_does_not_warn():
    metric = BalancedLoss(POWERS)
    metric.update(torch.ones(3), torch.ones(3))
    assert metric.compute() == 0.0
    metric.reset()  # warnings are errors here


def test_observed_metric_is_the_metric_of_what_was_observed():
    metric, oracle = ObservedMetric(MeanSquaredError()), MeanSquaredError()
    for count in (3, 0, 5):
        prediction, label = torch.randn(count), torch.randn(count)
        metric.update(prediction, label)
        if count:
            oracle.update(prediction, label)
    assert metric.compute().equal(oracle.compute())


def test_observed_metric_without_labels_is_none_in_silence():
    metric = ObservedMetric(MeanAbsoluteError())
    metric.update(torch.empty(0), torch.empty(0))
    assert metric.compute() is None  # warnings are errors here


def test_observed_metric_whose_labels_are_all_on_another_rank():
    metric = with_other_rank(ObservedMetric(MeanAbsoluteError()), torch.tensor(4))
    with_other_rank(metric.metric, torch.tensor(6.0), torch.tensor(4))
    metric.update(torch.empty(0), torch.empty(0))
    assert metric.compute().item() == 1.5


def test_observed_metric_starts_afresh():
    metric = ObservedMetric(MeanAbsoluteError())
    metric.update(torch.tensor([1.0]), torch.tensor([9.0]))
    metric.reset()
    metric.update(torch.empty(0), torch.empty(0))
    assert metric.compute() is None
    metric.update(torch.tensor([1.0]), torch.tensor([2.0]))
    assert metric.compute().item() == 1.0


def test_observed_metric_keeps_a_copy():
    mine = MeanAbsoluteError()
    metric = ObservedMetric(mine)
    metric.update(torch.tensor([1.0]), torch.tensor([9.0]))
    assert not mine.update_called


def test_observed_metric_called_as_a_function_accumulates():
    metric = ObservedMetric(MeanAbsoluteError())
    for target in (2.0, 4.0):
        metric(torch.tensor([1.0]), torch.tensor([target]))
    assert metric.compute() == 2.0


def test_what_metrics_start_from_survives_memory_that_is_not_filled():
    mine = MeanAbsoluteError()
    with torch.device("meta"):
        metrics = TaskMetrics({"depth": Task("gaussian", metrics=mine)}, [0.5])
    metrics._apply(lambda tensor: torch.full_like(tensor, 7, device="cpu"))  # as to_empty may leave it
    for key, values in [("loss", (torch.tensor(6.0), torch.tensor(2.0))), ("MeanAbsoluteError", (torch.ones(2),) * 2)]:
        metric = metrics[f"val/depth/{key}"]
        metric.reset()
        metric.update(*values)
    assert metrics["val/depth/loss"].compute() == 3.0
    assert metrics["val/depth/MeanAbsoluteError"].compute() == 0.0
    assert metrics["val/depth/MeanAbsoluteError"].labels == 2


def test_a_metric_on_the_meta_device_is_refused():
    with torch.device("meta"):
        mine = MeanAbsoluteError()
    with pytest.raises(ValueError, match="found MeanAbsoluteError on the meta device, which forgets"):
        ObservedMetric(mine)


def test_observed_metric_has_the_direction_of_its_metric():
    assert ObservedMetric(Accuracy("binary")).higher_is_better is True
    assert ObservedMetric(MeanAbsoluteError()).higher_is_better is False


# -- several tasks -----------------------------------------------------------------------------------------------------

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
