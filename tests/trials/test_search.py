import csv
import json
import math
import sys
from itertools import product
from pathlib import Path

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_uncertainty import FixedWeighting
from lightning_uncertainty.trials import Measure, Point, WeightSearch, search_weights, simplex_grid
from tests._launch import run as run_together
from tests._nets import Owning, dicts

COUNTS = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))["scalarisation.grid_size"]
FAST = {"max_epochs": 2, "accelerator": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    yield
    optuna.logging.set_verbosity(level)


def loaders():
    torch.manual_seed(1)
    return dicts(16), dicts(16)


def run(make=Owning, **options):
    return search_weights(make, loaders, **{"parts": 4, "trainer": FAST, **options})


class Counting:
    """Makes modules, and knows the weights of each; it may fail at one."""

    def __init__(self, fail_at=None):
        self.fail_at, self.weights = fail_at, []

    def __call__(self, weighting):
        module = Owning(weighting)
        self.weights.append(tuple(module.task_weighting.weight.tolist()))
        if len(self.weights) == self.fail_at:
            raise KeyboardInterrupt
        return module

    @property
    def fits(self):
        return self.weights[1:]  # the first is looked at only


# -- the grid ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", COUNTS["expected"]["counts"])
def test_the_grid_has_as_many_points_as_it_should(tasks):
    parts = round(1 / COUNTS["inputs"]["step"])
    counts = COUNTS["expected"]["counts"][tasks]
    assert len(simplex_grid(int(tasks), parts)) == counts["positive"] == math.comb(parts - 1, int(tasks) - 1)
    assert len(simplex_grid(int(tasks), parts, zeros=True)) == counts["nonnegative"]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.booleans())
def test_the_grid_is_every_point_once(tasks, parts, zeros):
    steps = range(0 if zeros else 1, parts + 1)
    by_hand = {tuple(i / parts for i in point) for point in product(steps, repeat=tasks) if sum(point) == parts}
    if not by_hand:
        with pytest.raises(ValueError, match=f"at least {tasks} for {tasks} tasks: found {parts}"):
            simplex_grid(tasks, parts, zeros=zeros)
        return
    points = simplex_grid(tasks, parts, zeros=zeros)
    assert len(points) == len(by_hand)
    assert set(points) == by_hand


# -- the search --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("zeros", "count"), [(False, 3), (True, 5)])
def test_every_point_is_fitted_once_and_the_best_is_first(zeros, count):
    make = Counting()
    found = run(make, zeros=zeros)
    assert sorted(make.fits) == simplex_grid(2, 4, zeros=zeros)
    assert len(found.points) == count
    values = [point.value for point in found.points]
    assert values == sorted(values)
    assert [point.value for point in found.points] == [point.row["val/balanced_loss"] for point in found.points]
    assert found.weighting.bind(Owning().task_likelihoods()).weight.tolist() == list(found.points[0].weights.values())


def test_a_fit_is_that_of_compare():
    from lightning_uncertainty.trials import compare

    best = run().points[0]
    other = compare(Owning, loaders, {"w": FixedWeighting(best.weights)}, "x", seeds=[0], baseline=None, trainer=FAST)
    assert other.trials[0].rows[-1] == best.row


@pytest.mark.parametrize(
    ("objective", "higher", "up"),
    [
        ("val/kind/MulticlassAccuracy", None, True),
        ("val/kind/loss", None, False),
        ("val/depth/MeanAbsoluteError", {"depth": {"MeanAbsoluteError": True}}, True),
    ],
)
def test_the_objective_has_the_direction_of_its_metric(objective, higher, up):
    found = run(objective=objective, higher_is_better=higher)
    values = [point.value for point in found.points]
    assert found.maximize is up
    assert values == sorted(values, reverse=up)


def test_a_search_goes_on_where_it_was_killed():
    storage = {"storage": "sqlite:///search.db"}
    with pytest.raises(KeyboardInterrupt):
        run(Counting(fail_at=3), **storage)
    make = Counting()
    resumed = run(make, **storage)
    assert len(make.fits) == 2
    assert resumed == run()
    again = Counting()
    assert run(again, **storage) == resumed
    assert again.fits == []


def test_a_search_may_go_in_parts():
    storage = {"storage": "sqlite:///search.db"}
    assert [len(run(n_trials=1, **storage).points) for _ in range(4)] == [1, 2, 3, 3]


def test_a_process_that_was_killed_leaves_a_point_to_do():
    storage = optuna.storages.InMemoryStorage()
    run(n_trials=1, storage=storage)
    study = optuna.load_study(study_name="weights", storage=storage)
    study.sampler = optuna.samplers.GridSampler({"point": [0, 1, 2]}, seed=0)
    study.ask().suggest_int("point", 0, 2)  # and never told
    make = Counting()
    assert len(run(make, storage=storage).points) == 3
    assert len(make.fits) == 2


def test_another_sampler_draws_from_the_whole_simplex():
    found = run(sampler=optuna.samplers.RandomSampler(seed=0), n_trials=4)
    assert len(found.points) == 4
    for point in found.points:
        assert sum(point.weights.values()) == pytest.approx(1)
        assert min(point.weights.values()) > 0


def test_draws_are_uniform_on_the_simplex():
    from lightning_uncertainty.trials._fits import draw_weights

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    draws = torch.tensor([draw_weights(study.ask(), ("a", "b", "c")) for _ in range(400)])
    torch.testing.assert_close(draws.mean(0), torch.full((3,), 1 / 3), atol=0.04, rtol=0)
    torch.testing.assert_close(draws.var(0), torch.full((3,), 1 / 18), atol=0.015, rtol=0)  # Dirichlet(1, 1, 1)


class AfterFirst(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return trial.number > 0 and trial.last_step == 0


def test_pruned_fits_end_early_and_are_last():
    found = run(pruner=AfterFirst())
    assert [point.value is None for point in found.points] == [False, True, True]
    assert [bool(point.row) for point in found.points] == [True, False, False]
    assert "" in found.table()
    assert len(found.pareto()) == 1
    with pytest.raises(ValueError, match="fits that came to their end: found none"):
        run(pruner=optuna.pruners.ThresholdPruner(upper=-1e9))


class Diverging(Owning):
    def on_validation_epoch_end(self):
        self.log("val/mine", float("nan") if self.task_weighting.weight[0] > 0.5 else 1.0)


def test_a_fit_that_diverged_is_worst():
    found = run(Diverging, objective="val/mine")
    assert [point.value for point in found.points] == [1.0, 1.0, math.inf]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"parts": 5}, "weights was multiples of 1/4 and is multiples of 1/5"),
        ({"zeros": True}, "is multiples of 1/4 and zeros"),
        ({"objective": "val/depth/loss"}, "objective was val/balanced_loss and is val/depth/loss"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"trainer": {**FAST, "max_epochs": 1}}, "trainer.max_epochs was 2 and is 1"),
        ({"make": lambda w: Renamed(w)}, "tasks was depth: .* and is width: "),
    ],
)
def test_mixed_storages_are_told(changed, expected):
    storage = optuna.storages.InMemoryStorage()
    run(n_trials=1, storage=storage)
    with pytest.raises(ValueError, match=f"trials of one search: found that in 'weights' .*{expected}.*; give another"):
        run(**{"storage": storage, **changed})
    assert len(run(storage=storage, study_name="other", n_trials=1, **changed).points) == 1


class Renamed(Owning):
    def __init__(self, weighting):
        from lightning_uncertainty import Task

        super(Owning, self).__init__()
        self.trunk = torch.nn.Linear(4, 8)
        depth = Task("gaussian", head=torch.nn.Linear(8, 1), target="depth")
        self.register_tasks({"width": depth, "depth": depth}, weighting=weighting)


def test_a_study_of_something_else_is_told():
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(storage=storage, study_name="weights").optimize(lambda trial: trial.suggest_float("x", 0, 1), 1)
    with pytest.raises(
        ValueError, match="found that in 'weights' trials are of something else; give another study_name"
    ):
        run(storage=storage)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"sampler": optuna.samplers.RandomSampler()}, "n_trials should say when RandomSampler has drawn enough"),
        (
            {"sampler": optuna.samplers.RandomSampler(), "n_trials": 1, "folder": "x"},
            "folder should be given for a grid",
        ),
        ({"parts": 1}, "a grid should have parts, at least 2 for 2 tasks: found 1"),
        ({"objective": "val/total"}, "found nothing under 'val/total' among epoch, "),
        ({"metrics": {"deth": "loss"}, "n_trials": 1}, "metrics should name tasks"),
        ({"make": lambda weighting: Owning()}, "make should give its argument to register_tasks"),
    ],
)
def test_mistakes_are_told(wrong, expected):
    with pytest.raises(ValueError, match=expected):
        run(**wrong)


def test_optuna_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"a search needs optuna: pip install 'lightning-uncertainty\[search\]'"
    ):
        run()


PROGRAM = """
import sys
import optuna
from tests.trials.test_search import Counting, run

optuna.logging.set_verbosity(optuna.logging.ERROR)
run(Counting(), parts=7, storage=sys.argv[1])
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(1500)
def test_two_processes_from_an_empty_folder_fit_every_point_once(tmp_path):
    storage = f"sqlite:///{tmp_path / 'search.db'}"
    run_together([sys.executable, "-W", "ignore", "-c", PROGRAM, storage], [{}, {}], tmp_path, timeout=100)
    make = Counting()
    found = run(make, parts=7, storage=storage)
    assert make.fits == []
    assert sorted(tuple(point.weights.values()) for point in found.points) == simplex_grid(2, 7)
    assert len(optuna.load_study(study_name="weights", storage=storage).get_trials()) == 6


def test_a_folder_alone_keeps_a_grid(tmp_path):
    folder = tmp_path / "grid"
    first = run(folder=folder)
    make = Counting()
    assert run(make, folder=folder) == first
    assert make.fits == []
    with pytest.raises(
        ValueError, match=r"trials of one setup: .* objective was val/balanced_loss and is val/depth/loss"
    ):
        run(folder=folder, objective="val/depth/loss")


class Raising(Counting):
    """Fails to fit one point, as long as `mended` is false."""

    mended = False

    def __call__(self, weighting):
        module = super().__call__(weighting)
        if not self.mended and self.weights[-1] == (0.5, 0.5) and len(self.weights) > 1:
            raise MemoryError
        return module


@pytest.mark.parametrize("storage", [None, "sqlite:///search.db"])
def test_a_point_that_failed_is_shown_and_fitted_again_when_asked(storage, tmp_path):
    make, place = Raising(), {"folder": tmp_path / "grid", "storage": storage}
    with pytest.warns(UserWarning, match="trial 'depth 0.5, kind 0.5, seed 0' failed: out of memory; the others go on"):
        found = run(make, **place)
    assert [(point.value is None, point.failed) for point in found.points] == [
        *[(False, "")] * 2,
        (True, "failed: out of memory"),
    ]
    assert found.points[-1].weights == {"depth": 0.5, "kind": 0.5}
    assert "failed: out of memory" in found.table()
    again = Raising()
    assert run(again, **place) == found
    assert again.fits == []
    again = Raising()
    again.mended = True
    mended = run(again, retry_failed=True, **place)
    assert again.fits == [(0.5, 0.5)]
    assert mended == run()


def test_a_draw_that_failed_is_told_and_the_others_go_on():
    calls = iter(range(10))

    def second_fails(weighting):
        if next(calls) == 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return Owning(weighting)

    with pytest.warns(UserWarning, match="failed: out of memory; the others go on"):
        found = run(second_fails, sampler=optuna.samplers.RandomSampler(seed=0), n_trials=3)
    assert len(found.points) == 2


# -- the result --------------------------------------------------------------------------------------------------------

ERROR, ACCURACY = Measure("depth", "mae", "val/depth/mae", False), Measure("kind", "acc", "val/kind/acc", True)


def made(*numbers):
    """A result of pairs (error, accuracy)."""
    points = [
        Point({"depth": 1 - i / 10, "kind": i / 10}, float(i), {ERROR.key: error, ACCURACY.key: accuracy})
        for i, (error, accuracy) in enumerate(numbers)
    ]
    return WeightSearch(tuple(points), (ERROR, ACCURACY), "val/balanced_loss", False)


NUMBERS = [(1.0, 0.5), (2.0, 0.9), (1.5, 0.4), (2.0, 0.8), (1.0, 0.5), (float("nan"), 1.0)]


def test_the_front_is_what_no_other_beats():
    assert [point.value for point in made(*NUMBERS).pareto()] == [0.0, 1.0, 4.0]


def test_csv_and_table(tmp_path):
    found = made(*NUMBERS)
    found.to_csv(tmp_path / "x.csv")
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["weight/kind"]) for row in rows[:2]] == [0.0, 0.1]
    assert [float(row["kind/acc"]) for row in rows[:2]] == [0.5, 0.9]
    assert [row["pareto"] for row in rows[:3]] == ["True", "True", "False"]
    text = str(found)
    assert "Fixed weights by val/balanced_loss, 6 fits" in text
    assert text.endswith("best: FixedWeighting(weights={'depth': 1.0, 'kind': 0.0})")
    assert text.count("*") == 3


def test_the_plot_shows_points_and_front():
    from matplotlib import pyplot

    found = made(*NUMBERS[:4])
    figure, ax = found.plot()
    assert ax.collections[0].get_offsets().tolist() == [list(pair) for pair in NUMBERS[:4]]
    front, best = ax.lines
    assert [list(front.get_xdata()), list(front.get_ydata())] == [[1.0, 2.0], [0.5, 0.9]]
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([1.0], [0.5])
    assert ax.get_xlabel() == "depth mae, lower is better"
    assert found.plot("kind", "depth", ax=ax) == (figure, ax)
    pyplot.close("all")
    with pytest.raises(ValueError, match="two tasks out of depth, kind: found kind and kind"):
        found.plot("kind", "kind")
    with pytest.raises(ValueError, match="found depth and width"):
        found.plot(y="width")


def test_the_plot_needs_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"lightning-uncertainty\[plot\]"):
        made(*NUMBERS).plot()
