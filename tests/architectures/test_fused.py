"""What holds of every architecture that has a backbone for each task."""

import pytest
import torch
from torch import nn

from lightning_uncertainty.architectures import NDDR, CrossStitch
from tests.architectures._two_backbones import NAMES, heads, stages

BOTH = pytest.mark.parametrize("architecture", [CrossStitch, NDDR])


@BOTH
def test_every_task_gets_a_copy_of_the_stages(architecture):
    given = stages()
    net = architecture(given, heads(3), [4, 6])
    owners = [nn.ModuleList(given), *net.backbones.values()]
    addresses = {parameter.data_ptr() for owner in owners for parameter in owner.parameters()}
    assert len(addresses) == 4 * len(list(owners[0].parameters()))
    for own in net.backbones.values():
        torch.testing.assert_close(dict(own.state_dict()), dict(owners[0].state_dict()), rtol=0, atol=0)


@BOTH
def test_pretrained_backbones_are_used_by_name(architecture):
    own = {task: stages() for task in ["normals", "depth", "semantics"]}
    net = architecture(own, heads(3), [4, 6])
    assert list(net.backbones) == list(net.predictions) == NAMES
    for task, given in own.items():
        assert all(stage is original for stage, original in zip(net.backbones[task], given, strict=True))


@BOTH
@pytest.mark.parametrize("container", [list, tuple, nn.ModuleList, lambda given: nn.Sequential(*given)])
def test_stages_come_in_any_sequence(architecture, container):
    given = stages()
    net = architecture(container(given), heads(), [4, 6])
    expected = architecture(given, dict(net.heads.items()), [4, 6])
    images = torch.randn(2, 3, 9, 11)
    torch.testing.assert_close(net(images), expected(images))
    own = architecture({task: container(stages()) for task in net.predictions}, heads(), [4, 6])
    assert [len(backbone) for backbone in own.backbones.values()] == [2, 2]


@BOTH
@pytest.mark.parametrize(
    ("backbones", "message"),
    [
        ({"depth": stages(), "normals": stages()}, "heads, depth, semantics: found depth, normals"),
        ({"depth": stages()}, "heads, depth, semantics: found depth;"),
        ({task: stages() for task in NAMES}, "heads, depth, semantics: found depth, semantics, normals;"),
        ({}, "heads, depth, semantics: found none"),
        ({"depth": stages(), "semantics": stages((4,))}, "2 stages.*: found 2 for depth, 1 for semantics"),
        (stages((4, 6, 6)), r"2 stages, one for each entry of channels \[4, 6\]: found 3 for depth, 3 for semantics"),
        ([], "modules, at least one: found none"),
        ([nn.Identity(), 3], "should be modules.*: found int"),
        (nn.Conv2d(3, 4, 3), r"sequence of stages.*: found Conv2d; list its stages, as in \[nn.Sequential\("),
        ({"depth": stages(), "semantics": nn.Conv2d(3, 4, 3)}, "sequence of stages.*: found Conv2d"),
        (dict.fromkeys(["depth", "semantics"], stages()), "parameters of its own: .* give the stages once"),
    ],
)
def test_wrong_backbones_are_named(architecture, backbones, message):
    with pytest.raises(ValueError, match=message):
        architecture(backbones, heads(), [4, 6])


@BOTH
def test_channels_should_be_as_declared(architecture):
    net = architecture(stages((4, 6)), heads(), [4, 5])
    with pytest.raises(
        ValueError, match=r"stage 1 for task depth should be \[B, 5, .*\]: found \[2, 6, 3, 3\]; correct"
    ):
        net(torch.ones(2, 3, 9, 11))


@BOTH
def test_stages_of_tasks_should_end_alike(architecture):
    own = {"depth": stages(), "semantics": [*stages()[:1], *stages(stride=1)[1:]]}
    net = architecture(own, heads(), [4, 6])
    found = r"stage 1 .* one shape.*: found \[2, 6, 3, 3\] for task depth and \[2, 6, 5, 6\] for task semantics"
    with pytest.raises(ValueError, match=found):
        net(torch.ones(2, 3, 9, 11))
