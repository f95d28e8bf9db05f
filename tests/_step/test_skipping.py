"""A total whose backward moves nothing."""

import gc
import weakref

import pytest
import torch
from torch import nn

from lightning_uncertainty._step import Skip
from lightning_uncertainty._step.skipping import drop_zeros


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


def penalty(net):
    return sum(parameter.square().sum() for parameter in net.parameters())


def test_in_its_backward_alone_gradients_are_silent(net):
    skip = Skip(net, None)
    (skip.total(torch.device("cpu")) + penalty(net)).backward()
    assert all(parameter.grad is None for parameter in net.parameters())
    penalty(net).backward()
    for parameter in net.parameters():
        torch.testing.assert_close(parameter.grad, 2 * parameter.detach())


def test_gradients_that_were_there_stay(net):
    penalty(net[0]).backward()
    (3 * Skip(net, None).total(torch.device("cpu")) - 5 * penalty(net)).backward()
    for parameter in net[0].parameters():
        torch.testing.assert_close(parameter.grad, 2 * parameter.detach())
    assert all(parameter.grad is None for parameter in net[1].parameters())


def test_one_that_had_no_backward_is_ended(net):
    skip = Skip(net, None)
    skip.end()
    penalty(net).backward()
    assert all(parameter.grad.any() for parameter in net.parameters())


def test_frozen_parameters_are_let_alone(net):
    net[0].requires_grad_(False)
    (Skip(net, None).total(torch.device("cpu")) + penalty(net)).backward()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_nothing_of_it_outlives_its_total(net):
    skip = Skip(net, None)
    total, seen = skip.total(torch.device("cpu")), weakref.ref(skip)
    total.backward()
    del skip, total
    gc.collect()
    assert seen() is None
    assert all(not parameter._backward_hooks for parameter in net.parameters())


def test_zeros_are_dropped_and_nothing_else(net):
    penalty(net).backward()
    net[0].bias.grad.zero_()
    drop_zeros(net.parameters())
    assert net[0].bias.grad is None
    assert sum(parameter.grad is not None for parameter in net.parameters()) == 3
