"""The losses of all tasks in one update: of each the values, and the ways, of metrics of its own."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_uncertainty import MultiTaskModule, Task
from lightning_uncertainty.metrics import BalancedLoss, TaskLoss
from lightning_uncertainty.metrics.stage_losses import LossPart, StageLosses
from lightning_uncertainty.tasks.metrics import TaskMetrics
from tests._nets import trainer
from tests.metrics._other_rank import NAN, with_other_rank

POWERS = {"depth": 0.5, "distance": 1.0, "mass": 0.5}


def made():
    whole = StageLosses(POWERS, ["mass"])
    return whole, {name: LossPart(whole, name) for name in POWERS}


def value(metric):
    found = metric.compute()
    return None if found is None else found.item()


def test_values_are_those_of_metrics_for_each_task_whatever_is_reset_when():
    whole, parts = made()
    balanced, own = BalancedLoss(POWERS, ["mass"]), {name: TaskLoss() for name in POWERS}
    whole._warned = balanced._warned = True  # of tasks without labels
    generator = torch.Generator().manual_seed(3)
    pairs = [(whole, balanced), *((parts[name], own[name]) for name in POWERS)]
    for _ in range(60):
        counts = torch.randint(4, (3,), generator=generator).float()
        sums = torch.where(counts > 0, torch.rand(3, generator=generator), NAN)
        whole.update(sums, counts)
        balanced.update(sums, counts)
        for metric, total, count in zip(own.values(), sums, counts, strict=True):
            metric.update(total, count)
        for place in torch.randperm(4, generator=generator).tolist():
            metric, oracle = pairs[place]
            found, expected = value(metric), value(oracle)
            assert found == (None if expected is None else pytest.approx(expected, rel=1e-6))
            if torch.rand((), generator=generator) < 0.3:
                metric.reset()
                oracle.reset()
            assert metric.update_called == oracle.update_called


@pytest.mark.parametrize("first", [0, 1])
def test_one_after_the_other_is_read_and_reset(first):
    whole, parts = made()
    whole.update(torch.tensor([4.0, 6.0, 2.0]), torch.tensor([1.0, 2.0, 2.0]))
    metrics = [whole, *parts.values()][:: -1 if first else 1]
    found = []
    for metric in metrics:
        found.append(value(metric))
        metric.reset()
    assert sorted(found) == pytest.approx(sorted([0.5 * math.log(4) + math.log(3) + 0.5, 4, 3, 1]))
    assert not any(metric.update_called for metric in metrics)
    whole.update(torch.tensor([1.0, NAN, 5.0]), torch.tensor([1.0, 0.0, 1.0]))
    assert [value(part) for part in parts.values()] == [1.0, None, 5.0]


def test_a_forward_adds_up_as_an_update_does():
    whole, parts = made()
    for _ in range(2):
        whole(torch.tensor([4.0, 6.0, 2.0]), torch.tensor([1.0, 2.0, 2.0]))
    assert [value(part) for part in parts.values()] == [4.0, 3.0, 1.0]
    assert whole.of_tasks[1].tolist() == [2.0, 4.0, 4.0]


def test_states_of_other_ranks_are_added_once_for_all():
    ranks = torch.tensor([3.0, NAN, 1.0]), torch.tensor([3.0, 0.0, 1.0])
    other = StageLosses(POWERS)
    other.update(*ranks)
    whole, parts = made()
    calls = []

    def gathered(tensor, group=None):
        calls.append(tensor)
        name = list(other._reductions)[(len(calls) - 1) % 3]
        return [tensor, getattr(other, name)]

    with_other_rank(whole)
    whole.dist_sync_fn = gathered
    whole.update(torch.tensor([9.0, NAN, 2.0]), torch.tensor([1.0, 0.0, 1.0]))
    assert [value(part) for part in parts.values()] == [3.0, None, 1.5]
    assert len(calls) == len(other._reductions) == 3
    assert whole.of_tasks[0].tolist() == [9.0, 0.0, 2.0]  # its own again


@pytest.mark.parametrize("again", [copy.deepcopy, lambda metrics: pickle.loads(pickle.dumps(metrics))])
def test_parts_of_a_copy_are_parts_of_the_copy(again):
    metrics = TaskMetrics({name: Task("gaussian") for name in POWERS}, POWERS.values())
    twin = again(metrics)
    twin["val/balanced_loss"].update(torch.ones(3), torch.ones(3))
    assert value(twin["val/mass/loss"]) == 1.0
    assert not metrics["val/mass/loss"].update_called
    assert metrics.state_dict() == {}


class Same(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, features):
        return features * self.one


def test_a_batch_of_evaluation_costs_one_update_whatever_the_number_of_tasks(monkeypatch):
    names = [f"task{place}" for place in range(7)]
    net = MultiTaskModule(nn.Identity(), {name: Task("gaussian", Same()) for name in names}, inputs="x")
    rows = [{"x": torch.zeros(1), **{name: torch.full((1,), float(i + 1)) for i, name in enumerate(names)}}] * 12
    updates, logs = [], []
    kinds = (StageLosses, LossPart, TaskLoss)
    for kind in kinds:
        of_kind = kind.update
        monkeypatch.setattr(
            kind, "update", lambda self, *batch, of=of_kind: (updates.append(type(self)), of(self, *batch))
        )
    net.task_metrics = TaskMetrics(net._task_specs, net.task_weighting.powers())  # of the classes that count
    log = net.log
    monkeypatch.setattr(net, "log", lambda key, *args, **options: (logs.append(key), log(key, *args, **options)))
    (found,) = trainer().validate(net, DataLoader(rows, batch_size=2), verbose=False)
    assert updates == [StageLosses] * 6
    assert sorted(logs) == sorted([f"val/{name}/loss" for name in names] + ["val/balanced_loss"])
    assert [found[f"val/{name}/loss"] for name in names] == pytest.approx([(i + 1) ** 2 for i in range(7)])


@pytest.mark.parametrize("order", list(itertools.permutations(range(2))))
def test_loaders_with_a_task_each_share_an_epoch(order):
    net = MultiTaskModule(nn.Identity(), {name: Task("gaussian", Same()) for name in ("a", "b")}, inputs="x")
    loaders = [
        DataLoader([{"x": torch.zeros(1), "a": torch.full((1,), 2.0), "b": torch.full((1,), NAN)}] * 3),
        DataLoader([{"x": torch.zeros(1), "a": torch.full((1,), NAN), "b": torch.full((1,), 3.0)}] * 2),
    ]
    for _ in range(2):
        trainer().validate(net, [loaders[place] for place in order], verbose=False)
        found = net.trainer.callback_metrics
        assert (found["val/a/loss"], found["val/b/loss"]) == (4.0, 9.0)


def test_a_part_alone_may_be_given_more():
    whole, parts = made()
    whole.update(torch.tensor([4.0, 6.0, 2.0]), torch.tensor([1.0, 2.0, 2.0]))
    parts["depth"].update(torch.tensor(2.0), torch.tensor(2.0))
    parts["mass"].update(torch.tensor(NAN), torch.tensor(0.0))
    assert [value(part) for part in parts.values()] == [2.0, 3.0, 1.0]
    assert value(whole) == pytest.approx(0.5 * math.log(4) + math.log(3) + 0.5)
