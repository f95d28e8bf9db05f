"""Ratios of learning rates, without a Trainer; with one: `tests/trainer/test_tuning.py`."""

import pytest
import torch

from lightning_uncertainty import own_group
from lightning_uncertainty._step.rates import RATIO, restore_rates, with_ratio
from tests._nets import Plain


class LearningRateFinder:
    """Known by its name, whatever Lightning package it is of."""


class Finder(LearningRateFinder):
    pass


class _LRCallback:
    pass


def flattened(net, rate=0.5, **options):
    optimizer = torch.optim.SGD(net.parameter_groups(lr=0.1, **options))
    for group in optimizer.param_groups:
        group["lr"] = rate
    return optimizer


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def restored(net, optimizer, *callbacks):
    restore_rates(callbacks, [optimizer], net.task_weighting.parameters())
    return rates(optimizer)


def test_a_group_knows_its_ratio_where_it_has_one():
    assert with_ratio({"lr": 0.3}, 0.1) == {"lr": 0.3, RATIO: pytest.approx(3.0)}
    assert with_ratio({"lr": torch.tensor(0.5)}, torch.tensor(0.25)) == {"lr": torch.tensor(0.5), RATIO: 2.0}
    for group, lr in (({"lr": 0.1}, 0.0), ({}, 0.1), ({"lr": 0.1}, None)):
        assert with_ratio(group, lr) == group


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"lr": "1e-3"}, "lr should be a number: found '1e-3'; a file of YAML has to say 1.0e-3"),
        ({"lr": None}, "lr should be a number: found None"),
        ({"lr": [0.1]}, r"lr should be a number: found \[0\.1\]$"),
        ({"lr": 0.1, "weight_decay": "1e-2"}, "weight_decay should be a number: found '1e-2'"),
        ({"lr": 0.1, "log_variance_lr": "1e-2"}, "log_variance_lr should be a number: found '1e-2'"),
    ],
)
def test_a_rate_is_a_number(options, found):
    net = Plain()
    with pytest.raises(ValueError, match=found):
        net.parameter_groups(**options)
    if "log_variance_lr" in options:
        with pytest.raises(ValueError, match=found), own_group(net.task_weighting, log_variance_lr="1e-2"):
            pass
    assert net.parameter_groups(lr=torch.tensor([0.1]))[1]["lr"] == 1.0


def test_a_finder_of_any_package_is_known_and_its_search_left_alone():
    net = Plain()
    assert restored(net, flattened(net), Finder()) == [0.5, 5.0]
    assert restored(net, flattened(net), _LRCallback()) == [0.5, 0.5]
    assert restored(net, flattened(net, rate=0.0), Finder()) == [0.0, 0.0]
    assert restored(net, flattened(net, log_variance_lr=0.1), Finder()) == [0.5, 0.5]  # as they were given


def test_ratios_outlive_the_state_of_an_optimizer():
    net = Plain()
    optimizer = torch.optim.SGD(net.parameter_groups(lr=1.0))
    optimizer.load_state_dict(flattened(net).state_dict())
    assert restored(net, optimizer, Finder()) == [0.5, 5.0]


def test_one_group_for_all_has_nothing_to_lose():
    net = Plain()
    assert restored(net, torch.optim.SGD(net.parameters(), 0.5), Finder()) == [0.5]
