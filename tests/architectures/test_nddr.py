import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_uncertainty.architectures.nddr import NDDR, NDDRLayer
from tests.architectures._two_backbones import FEATURES, NAMES, heads, run_beside, stages

WEIGHT_OF_THE_FIRST = [[0.9, 0.0, 0.1, 0.0], [0.0, 0.9, 0.0, 0.1]]
WITHOUT_BATCH_NORM = [
    [[[[0.1, 0.95], [1.8, 2.65]], [[3.5, 4.35], [5.2, 6.05]]]],
    [[[[0.9, 0.55], [0.2, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]],
]
FACTOR_OF_BATCH_NORM = 0.9999950000374997


def blocks(layer, task):
    """Return a task's convolution as `[C, T, C]`: channel out, task in, channel in."""
    weight = layer.layers[task][0].weight.detach()
    return weight.reshape(weight.shape[0], len(layer.layers), -1)


@pytest.mark.usefixtures("_float64")
def test_features_at_the_start():
    layer = NDDRLayer(2, 2).eval()
    torch.testing.assert_close(blocks(layer, 0).flatten(1), torch.tensor(WEIGHT_OF_THE_FIRST), rtol=1e-9, atol=1e-12)
    expected = torch.tensor(WITHOUT_BATCH_NORM) * FACTOR_OF_BATCH_NORM
    fused = torch.stack(layer(list(torch.tensor(FEATURES))))
    torch.testing.assert_close(fused, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_weights_are_diagonal_and_convex_at_the_start(tasks):
    layer = NDDRLayer(tasks, 4)
    for task in range(tasks):
        weights = blocks(layer, task).permute(1, 0, 2)
        expected = torch.full((tasks,), 0.1 / (tasks - 1))
        expected[task] = 0.9
        torch.testing.assert_close(weights, expected[:, None, None] * torch.eye(4))
        torch.testing.assert_close(weights.sum((0, 2)), torch.ones(4))


def test_weight_of_others_can_be_given():
    weights = blocks(NDDRLayer(3, 2, alpha=0.7, beta=0.2), 1).permute(1, 0, 2)
    torch.testing.assert_close(weights, torch.tensor([0.2, 0.7, 0.2])[:, None, None] * torch.eye(2))


def test_layer_is_convolution_batch_norm_relu():
    layer = NDDRLayer(3, 4)
    for convolution, _, _ in layer.layers:
        nn.init.normal_(convolution.weight)
    features = torch.randn(3, 2, 4, 5, 7)
    for task, fused in enumerate(layer(list(features))):
        reduced = torch.einsum("otc,tbchw->bohw", blocks(layer, task), features)
        mean, variance = reduced.mean((0, 2, 3)), reduced.var((0, 2, 3), unbiased=False)
        normalised = (reduced - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        torch.testing.assert_close(fused, normalised.relu(), rtol=1e-4, atol=1e-5)


def test_running_statistics_move_by_a_twentieth():
    layer = NDDRLayer(2, 4)
    features = torch.randn(2, 3, 4, 5, 7) + 10
    layer(list(features))
    mean = 0.9 * features[1].mean((0, 2, 3)) + 0.1 * features[0].mean((0, 2, 3))
    torch.testing.assert_close(layer.layers[1][1].running_mean, 0.05 * mean)


def test_no_weight_of_others_is_batch_norm_and_relu_of_ones_own():
    layer = NDDRLayer(3, 4, alpha=1.0, beta=0.0)
    features = torch.randn(3, 2, 4, 5, 7)
    expected = [F.batch_norm(x, None, None, training=True).relu() for x in features]
    torch.testing.assert_close(layer(list(features)), expected)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_the_layer_are_right(training):
    layer = NDDRLayer(2, 2).double().train(training)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    features = [torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def fused(*values):
        state = dict(zip(names, values[2:], strict=True))
        return tuple(torch.func.functional_call(layer, state, (values[:2],)))

    assert torch.autograd.gradcheck(fused, (*features, *parameters))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 8, 5, 7)], "one tensor for each of 2 tasks: found 1"),
        ([(2, 3, 5, 7), (2, 5, 5, 7)], r"for task 0 should be \[B, 4, h, w\]: found \[2, 3, 5, 7\]; correct"),
        ([(2, 4, 5, 7), (2, 4, 5, 6)], r"found \[2, 4, 5, 7\] for task 0 and \[2, 4, 5, 6\] for task 1"),
    ],
)
def test_layer_takes_features_of_one_shape(shapes, message):
    with pytest.raises(ValueError, match=message):
        NDDRLayer(2, 4)([torch.ones(shape) for shape in shapes])


@pytest.mark.parametrize("tasks", [2, 3])
def test_no_weight_of_others_is_separate_networks(tasks):
    own = {task: stages() for task in NAMES[:tasks]}
    net = NDDR(own, heads(tasks), [4, 6], alpha=1.0)
    separate = {
        task: copy.deepcopy(
            nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), second, nn.BatchNorm2d(6), nn.ReLU(), net.heads[task])
        )
        for task, (first, second) in own.items()
    }
    run_beside(net, separate)
    for task, network in separate.items():
        for stage, other in zip([*net.backbones[task], net.heads[task]], network[::3], strict=True):
            gradients = [[parameter.grad for parameter in module.parameters()] for module in (stage, other)]
            torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_layer_follows_every_stage_in_the_order_of_the_heads():
    own = {task: stages() for task in ["normals", "depth", "semantics"]}
    net = NDDR(own, heads(3), [4, 6])
    for layer in net.fusions:
        for convolution, _, _ in layer.layers:
            nn.init.normal_(convolution.weight)
    images = torch.randn(2, 3, 9, 11)
    features = dict.fromkeys(NAMES, images)
    for stage, layer in enumerate(net.fusions):
        concatenated = torch.cat([own[task][stage](features[task]) for task in NAMES], dim=1)
        features = {task: layer.layers[k](concatenated) for k, task in enumerate(NAMES)}
    expected = {task: net.heads[task](features[task]) for task in NAMES}
    torch.testing.assert_close(net.predict(images), expected)


def test_shortcut_takes_all_layers_at_the_last_ones_size():
    net = NDDR(stages((4, 5, 6)), heads(), [4, 5, 6], shortcut=True).eval()
    images = torch.randn(2, 3, 33, 47)
    fused = {task: [] for task in net.predictions}
    for layer in net.fusions:
        for task, own in zip(net.predictions, layer.layers, strict=True):
            own.register_forward_hook(lambda module, args, output, task=task: fused[task].append(output))
    outputs = net.predict(images)
    for task, features in fused.items():
        assert [list(x.shape) for x in features] == [[2, 4, 17, 24], [2, 5, 9, 12], [2, 6, 5, 6]]
        resized = [F.interpolate(x, (5, 6), mode="bilinear", align_corners=False) for x in features]
        convolution = net.shortcuts[task]
        matrix = convolution.weight[:, :, 0, 0]
        reduced = torch.einsum("oc,bchw->bohw", matrix, torch.cat(resized, 1)) + convolution.bias[:, None, None]
        torch.testing.assert_close(outputs[task], net.heads[task](reduced))


def test_heads_take_the_last_layer_without_a_shortcut():
    net = NDDR(stages(), heads(), [4, 6])
    assert list(net.shortcuts.parameters()) == []
    taken = []
    net.heads["depth"].register_forward_pre_hook(lambda module, args: taken.append(args[0]))
    net.fusions[-1].layers[0].register_forward_hook(lambda module, args, output: taken.append(output))
    net(torch.randn(2, 3, 9, 11))
    assert taken[0] is taken[1]


def test_layers_can_have_a_learning_rate_of_their_own():
    net = NDDR(stages(), heads(), [4, 6], shortcut=True)
    layers = set(net.fusions.parameters())
    others = {*net.backbones.parameters(), *net.heads.parameters(), *net.shortcuts.parameters()}
    assert len(layers) == 2 * 2 * 3
    assert layers.isdisjoint(others)
    assert layers | others == set(net.parameters())


def test_one_task_has_nothing_to_be_fused_with():
    with pytest.raises(ValueError, match="NDDR should be for at least 2 tasks: found depth"):
        NDDR(stages(), heads(1), [4, 6])
    with pytest.raises(ValueError, match="at least 2 tasks: found 1"):
        NDDRLayer(1, 4, beta=0.1)
