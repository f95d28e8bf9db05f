"""The splitter leaves nothing behind: no key in a checkpoint, no group of processes in a copy."""

import copy
import pickle

import pytest
import torch

from lightning_uncertainty.balancing import GradientBalancing, GradNorm
from lightning_uncertainty.weightings import UncertaintyWeighting
from tests._nets import Owning, columns

WEIGHTINGS = [UncertaintyWeighting, GradNorm, GradientBalancing]


def step(net):
    batch = columns()
    return net.task_step(net.trunk(batch["x"]), batch, "train")


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_checkpoint_knows_nothing_of_it(weighting):
    net = Owning(weighting())
    net.task_splitter.watching = True
    step(net).backward()
    assert net.task_splitter.watched is not None
    assert not [key for key in net.state_dict() if "split" in key]
    assert set(net.task_weighting.state_dict()) == set(Owning(weighting()).task_weighting.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_copies_are_made_in_the_middle_of_a_step_and_have_no_group(weighting, copied):
    net = Owning(weighting())
    net.task_splitter._side_group._group = torch  # a group of processes cannot be pickled either
    net.task_splitter.watching = True
    net.task_outputs(net.trunk(columns()["x"]))
    twin = copied(net)
    assert twin.task_splitter is not net.task_splitter
    assert twin.task_splitter.watching
    assert twin.task_splitter._fork is None
    assert twin.task_splitter._side_group._group is None
    step(twin).backward()


def test_memory_of_gradients_is_left_to_the_next_step_and_not_to_copies():
    net = Owning(GradientBalancing(on="parameters"))
    found = []
    for _ in range(2):
        net.zero_grad()
        torch.manual_seed(0)  # of the batch
        step(net).backward()
        found.append((net.task_splitter._scratch._kept, net.trunk.weight.grad.clone()))
    (first, expected), (second, again) = found
    assert first is second
    assert first.shape == (2, net.trunk.weight.numel() + net.trunk.bias.numel())
    assert torch.equal(again, expected)
    net.trunk.bias.requires_grad_(False)  # fewer are shared
    step(net).backward()
    assert net.task_splitter._scratch._kept.shape == (2, net.trunk.weight.numel())
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert twin.task_splitter._scratch._kept is None
