"""Tasks of networks that make several predictions for one."""

import pytest
from torch import nn
from torchmetrics import MeanAbsoluteError

from lightning_uncertainty import Task, deep_supervision
from lightning_uncertainty.likelihoods import Gaussian, Laplace

PREDICTIONS = {"depth_1": "depth", "kind_1": "kind", "depth": "depth", "kind": "kind"}


def test_intermediate_predictions_are_auxiliary_tasks_with_the_labels_of_their_own():
    given = {"kind": "categorical", "depth": Task("laplace", target="d", mask="seen", metrics=MeanAbsoluteError())}
    tasks = deep_supervision(given, PREDICTIONS)
    assert list(tasks) == list(PREDICTIONS)
    assert tasks["depth"] is given["depth"]
    assert tasks["depth_1"] == Task("laplace", target="d", mask="seen", auxiliary=True)
    assert (tasks["kind_1"].target, tasks["kind"].target) == ("kind", None)
    assert not tasks["kind"].auxiliary


def test_a_function_that_gives_labels_goes_along():
    labels = {"d": 3.0}
    given = Task(Gaussian(), target=lambda batch: batch["d"])
    tasks = deep_supervision({"depth": given}, {"depth": "depth", "depth_1": "depth"})
    assert tasks["depth_1"].labels("depth_1", labels) == (3.0, None)
    assert tasks["depth_1"].likelihood == Gaussian()


@pytest.mark.parametrize(
    "tasks", [{"depth": "laplace"}, {"depth": "laplace", "kind": "categorical", "edges": "bernoulli"}]
)
def test_tasks_should_be_those_of_the_predictions(tasks):
    with pytest.raises(
        ValueError, match=r"tasks without heads should be those of the predictions \(depth, kind\): found depth"
    ):
        deep_supervision(tasks, PREDICTIONS)


def test_heads_are_the_networks_own():
    with pytest.raises(ValueError, match=r"should have no head: found one for depth; leave it out"):
        deep_supervision({"depth": Task(Laplace(), head=nn.Linear(2, 1))}, {"depth": "depth"})


def test_a_head_beside_the_network_comes_last_as_it_is():
    age = Task(Gaussian(), head=nn.Linear(2, 1))
    tasks = deep_supervision({"age": age, "depth": "laplace"}, {"depth": "depth", "depth_1": "depth"})
    assert list(tasks) == ["depth", "depth_1", "age"]
    assert tasks["age"] is age
    with pytest.raises(ValueError, match=r"should have no head: found one for depth_1; leave it out"):
        deep_supervision({"depth": "laplace", "depth_1": age}, {"depth": "depth", "depth_1": "depth"})


def test_names_are_checked():
    with pytest.raises(ValueError, match=r"a task's name should be letters.*found 'depth.1'"):
        deep_supervision({"depth": "laplace"}, {"depth": "depth", "depth.1": "depth"})
