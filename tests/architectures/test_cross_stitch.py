import copy

import pytest
import torch
from torch import nn

from lightning_uncertainty.architectures.cross_stitch import CrossStitch, CrossStitchUnit
from tests.architectures._two_backbones import FEATURES, NAMES, heads, run_beside, stages

AT_THE_START = [
    [[[[0.1, 0.95], [1.8, 2.65]], [[3.5, 4.35], [5.2, 6.05]]]],
    [[[[0.9, 0.55], [0.2, -0.15]], [[-0.5, -0.85], [-1.2, -1.55]]]],
]
ALPHA = [[[0.9, 0.5], [0.1, -0.2]], [[0.0, 1.0], [1.0, 0.3]]]
PER_CHANNEL = [
    [[[[0.1, 0.95], [1.8, 2.65]], [[2.2, 2.8], [3.4, 4.0]]]],
    [[[[1.0, 0.5], [0.0, -0.5]], [[3.7, 4.55], [5.4, 6.25]]]],
]


def randomise(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()


@pytest.mark.usefixtures("_float64")
def test_mixtures_at_the_start():
    mixed = CrossStitchUnit(2, 2)(list(torch.tensor(FEATURES)))
    torch.testing.assert_close(torch.stack(mixed), torch.tensor(AT_THE_START), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("_float64")
def test_every_channel_has_its_own_mixture():
    unit = CrossStitchUnit(2, 2)
    unit.load_state_dict({"alpha": torch.tensor(ALPHA)})
    mixed = unit(list(torch.tensor(FEATURES)))
    torch.testing.assert_close(torch.stack(mixed), torch.tensor(PER_CHANNEL), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [(), (5,), (5, 7)])
@pytest.mark.parametrize("channels", [4, None])
def test_unit_is_a_sum_over_tasks(size, channels):
    unit = CrossStitchUnit(3, channels)
    randomise(unit)
    features = torch.randn(3, 2, 4, *size)
    expected = torch.einsum("ijc,jbc...->ibc...", unit.alpha.expand(3, 3, 4), features)
    torch.testing.assert_close(torch.stack(unit(list(features))), expected)


@pytest.mark.parametrize("channels", [4, None])
@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_rows_are_convex_at_the_start(tasks, channels):
    alpha = CrossStitchUnit(tasks, channels).alpha.detach()
    assert alpha.shape == (tasks, tasks, channels or 1)
    torch.testing.assert_close(alpha.sum(1), torch.ones(tasks, channels or 1))
    torch.testing.assert_close(alpha.diagonal(), torch.full((channels or 1, tasks), 0.9))
    off_diagonal = alpha[~torch.eye(tasks, dtype=torch.bool)]
    torch.testing.assert_close(off_diagonal, torch.full_like(off_diagonal, 0.1 / (tasks - 1)))


def test_gradients_of_the_unit_are_right():
    unit = CrossStitchUnit(3, 2).double()
    features = [torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def mixed(alpha, *features):
        return tuple(torch.func.functional_call(unit, {"alpha": alpha}, (features,)))

    assert torch.autograd.gradcheck(mixed, (unit.alpha, *features))


def test_mixes_in_the_precision_of_alpha_and_returns_that_of_the_features():
    unit = CrossStitchUnit(2, 4)
    features = torch.randn(2, 3, 4, 5, dtype=torch.bfloat16)
    expected = torch.stack(unit(list(features.float()))).bfloat16()
    torch.testing.assert_close(torch.stack(unit(list(features))), expected, rtol=0, atol=0)


def test_unit_keeps_the_memory_format():
    features = [torch.randn(2, 4, 5, 7).to(memory_format=torch.channels_last) for _ in range(2)]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in CrossStitchUnit(2, 4)(features))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 4)], "one tensor for each of 2 tasks: found 1"),
        ([(2, 4)] * 3, "one tensor for each of 2 tasks: found 3"),
        ([(2, 1), (2, 1)], r"for task 0 should be \[B, 4, ...\]: found \[2, 1\]; correct channels"),
        ([(4,), (4,)], r"for task 0 should be \[B, 4, ...\]: found \[4\]; correct channels"),
        ([(2, 4, 5), (2, 4, 1)], r"one shape for all tasks: found \[2, 4, 5\] for task 0 and \[2, 4, 1\] for task 1"),
    ],
)
def test_unit_broadcasts_nothing(shapes, message):
    with pytest.raises(ValueError, match=message):
        CrossStitchUnit(2, 4)([torch.ones(shape) for shape in shapes])


@pytest.mark.parametrize("tasks", [2, 3])
def test_identity_units_are_separate_networks(tasks):
    own = {task: stages() for task in NAMES[:tasks]}
    net = CrossStitch(own, heads(tasks), [4, 6], self_weight=1.0)
    separate = {task: copy.deepcopy(nn.Sequential(*own[task], net.heads[task])) for task in own}
    run_beside(net, separate)
    for task, network in separate.items():
        parameters = [*net.backbones[task].parameters(), *net.heads[task].parameters()]
        for parameter, other in zip(parameters, network.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad)


def test_a_unit_follows_every_stage():
    net = CrossStitch(stages(), heads(), [4, 6])
    randomise(net.fusions)
    images = torch.randn(2, 3, 9, 11)
    a = b = images
    for stage, unit in enumerate(net.fusions):
        a, b = net.backbones["depth"][stage](a), net.backbones["semantics"][stage](b)
        alpha = unit.alpha[..., None, None]
        a, b = alpha[0, 0] * a + alpha[0, 1] * b, alpha[1, 0] * a + alpha[1, 1] * b
    outputs = net.predict(images)
    torch.testing.assert_close(outputs["depth"], net.heads["depth"](a))
    torch.testing.assert_close(outputs["semantics"], net.heads["semantics"](b))


def test_gradients_of_the_network_are_right():
    net = CrossStitch(stages((2, 2)), heads(3, 2), [2, 2]).double()
    names, parameters = zip(*net.named_parameters(), strict=True)
    images = torch.randn(1, 3, 4, 5, dtype=torch.float64)

    def predictions(*values):
        return tuple(torch.func.functional_call(net, dict(zip(names, values, strict=True)), (images,)).values())

    assert torch.autograd.gradcheck(predictions, parameters, fast_mode=True)


def test_one_number_for_all_channels():
    net = CrossStitch(stages(), heads(3), [4, 6], per_channel=False)
    assert [list(unit.alpha.shape) for unit in net.fusions] == [[3, 3, 1], [3, 3, 1]]
    per_channel = CrossStitch(dict(net.backbones.items()), dict(net.heads.items()), [4, 6])
    assert [list(unit.alpha.shape) for unit in per_channel.fusions] == [[3, 3, 4], [3, 3, 6]]
    images = torch.randn(2, 3, 9, 11)
    torch.testing.assert_close(net(images), per_channel(images))


def test_stages_may_work_in_place():
    gradients = []
    for inplace in [False, True]:
        torch.manual_seed(0)
        given = [nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(inplace), nn.Conv2d(4, 6, 3)), nn.ReLU(inplace)]
        net = CrossStitch(given, heads(), [4, 6, 6])
        sum(output.square().sum() for output in net(torch.randn(2, 3, 9, 11)).values()).backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    torch.testing.assert_close(*gradients)


def test_units_can_have_a_learning_rate_of_their_own():
    net = CrossStitch(stages(), heads(), [4, 6])
    units = set(net.fusions.parameters())
    others = {*net.backbones.parameters(), *net.heads.parameters()}
    assert units == {unit.alpha for unit in net.fusions}
    assert units.isdisjoint(others)
    assert units | others == set(net.parameters())


@pytest.mark.parametrize("tasks", [0, 1])
def test_one_task_has_nothing_to_be_mixed_with(tasks):
    with pytest.raises(ValueError, match="at least 2 tasks: found"):
        CrossStitch(stages(), heads(tasks), [4, 6])
    with pytest.raises(ValueError, match="at least 2 tasks: found"):
        CrossStitchUnit(tasks, 4)
