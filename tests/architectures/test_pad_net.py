from functools import partial

import pytest
import torch
from torch import nn

from lightning_uncertainty.architectures.pad_net import Distillation, PADNet, distil
from tests._numbers import float64
from tests.architectures._architectures import check_shared, one_feature

PIXELS = {
    "k": [[[0.0, 0.1], [0.2, 0.3]], [[0.4, 0.5], [0.6, 0.7]]],
    "l": [[[0.2, 0.1], [0.0, -0.1]], [[-0.2, -0.3], [-0.4, -0.5]]],
    "m": [[[0.5, 0.2], [-0.1, -0.4]], [[-0.7, -1.0], [-1.3, -1.6]]],
}
W = {"l": [[1.0, 0.5], [-1.0, 0.2]], "m": [[0.3, 0.0], [0.0, 2.0]], "k": [[0.2, -0.4], [1.0, 0.0]]}
V = {"l": [[0.5, 0.0], [0.1, 1.0]], "m": [[1.0, -1.0], [0.0, 1.0]]}
SURVEYS = [
    [[0.3737107601676628, 0.25174936067546094], [0.15074994375506207, 0.07064737859756182]],
    [[0.17347145184444587, 0.24277154334455212], [0.3181157896158819, 0.3873348435251771]],
]
SOURCE_GATED_MESSAGES = [
    [[0.6974137331603935, 0.7423697321190814], [0.7910006749392555, 0.8433740168283805]],
    [[0.18227717885910202, 0.24737239449899653], [0.3181157896158819, 0.3823348435251771]],
]
TARGET_GATED_MESSAGES = [
    [[0.5981106500777645, 0.668901384533025], [0.7401992032250264, 0.8120038796267031]],
    [[-0.039999999999999925, -0.17722315184783266], [-0.3347177954312124, -0.5120737104726005]],
]
WIRINGS = pytest.mark.parametrize(
    ("gate", "message_conv"), [("source", False), ("source", True), ("target", False), ("target", True)]
)


def with_weights(distillation):
    """Return a 1x1 distillation of float64 that has the weights W and V."""
    distillation.double()
    for task, gate in distillation.gates.items():
        gate.weight.data = float64(W[task])[..., None, None]
    for task, message in distillation.messages.items():
        if isinstance(message, nn.Conv2d):
            message.weight.data = float64(V[task])[..., None, None]
    return distillation


@pytest.mark.parametrize(
    ("gate", "message_conv", "expected"),
    [
        ("source", False, SURVEYS),
        ("source", True, SOURCE_GATED_MESSAGES),
        ("target", True, TARGET_GATED_MESSAGES),
    ],
)
def test_published_wirings(gate, message_conv, expected):
    take = with_weights(Distillation(2, "k", ["l", "m"], gate=gate, message_conv=message_conv, kernel=1))
    result = take({task: float64(pixels)[None] for task, pixels in PIXELS.items()})
    torch.testing.assert_close(result, float64(expected)[None], rtol=1e-9, atol=1e-12)


def test_target_gate_without_messages():
    take = with_weights(Distillation(2, "k", ["l", "m"], message_conv=False, kernel=1))
    own, first, second = (float64(PIXELS[task]) for task in "klm")
    gate = 1 / (1 + torch.exp(-torch.einsum("oi,ihw->ohw", float64(W["k"]), own)))
    result = take({task: float64(pixels)[None] for task, pixels in PIXELS.items()})
    torch.testing.assert_close(result, (own + gate * (first + second))[None], rtol=1e-12, atol=1e-12)


def test_the_papers_wiring_with_a_3x3_kernel_is_the_default():
    take = Distillation(4, "depth", ["semantics"])
    depth, semantics = torch.randn(2, 2, 4, 5, 6)
    gate, message = take.gates["depth"].weight, take.messages["semantics"].weight
    assert gate.shape == message.shape == (4, 4, 3, 3)
    opened = torch.sigmoid(nn.functional.conv2d(depth, gate, padding=1))
    passed = nn.functional.conv2d(semantics, message, padding=1)
    torch.testing.assert_close(take({"depth": depth, "semantics": semantics}), depth + opened * passed)
    assert len(list(take.parameters())) == 2
    net = PADNet(one_feature(), 8, {"depth": 1, "semantics": 5}, width=4)
    assert net.distillation["depth"].state_dict().keys() == take.state_dict().keys()


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_convolutions_of_the_exchange_grow_with_the_square_of_tasks(tasks):
    net = PADNet(one_feature(), 8, {f"task_{task}": 1 for task in range(tasks)}, width=4)
    assert sum(weight.numel() for weight in net.distillation.parameters()) == tasks**2 * 4 * 4 * 9


def test_distil_is_the_sum_of_gated_messages():
    target, gate, message, other = torch.randn(4, 3)
    expected = target + message / (1 + torch.exp(-gate)) + other / 2
    torch.testing.assert_close(distil(target, [gate, torch.zeros(3)], [message, other]), expected)


@WIRINGS
def test_gradient_of_the_distillation(gate, message_conv):
    take = Distillation(2, "a", ["b", "c"], gate=gate, message_conv=message_conv).double()
    features = [torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True) for _ in "abc"]
    assert torch.autograd.gradcheck(
        lambda *values: take(dict(zip("abc", values[:3], strict=True))), (*features, *take.parameters())
    )


def test_with_gates_shut_final_features_are_the_initial_ones():
    net = PADNet(one_feature(), 8, {"depth": 1, "semantics": 5}, auxiliary={"edges": 2}, width=4).eval()
    images = torch.randn(2, 3, 17, 23)
    features = {task: block(net.backbone(images)) for task, block in net.task_features.items()}
    assert all((feature >= 0).all() and feature.any() for feature in features.values())
    opened = net.exchange(features)
    for distillation in net.distillation.values():
        for gate in distillation.gates.values():
            gate.weight.data.fill_(-1e6)
    shut = net.exchange(features)
    for task in ("depth", "semantics"):
        torch.testing.assert_close(shut[task], features[task])
        assert (opened[task] - features[task]).abs().max() > 0.01


@WIRINGS
def test_tasks_take_from_all_others_and_auxiliary_tasks_take_nothing(gate, message_conv):
    net = PADNet(
        one_feature(),
        8,
        {"depth": 1, "semantics": 5},
        auxiliary={"edges": 2},
        width=4,
        distillation=partial(Distillation, gate=gate, message_conv=message_conv),
    )
    assert {task: list(take.messages) for task, take in net.distillation.items()} == {
        "depth": ["semantics", "edges"],
        "semantics": ["depth", "edges"],
    }
    for task, take in net.distillation.items():
        assert list(take.gates) == ([task] if gate == "target" else list(take.messages))
        assert all(isinstance(message, nn.Conv2d) == message_conv for message in take.messages.values())
    sum(prediction.square().mean() for prediction in net(torch.randn(2, 3, 17, 23)).values()).backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


def test_final_heads_take_the_distilled_features():
    net = PADNet(one_feature(), 8, {"depth": 1, "semantics": 5}, width=4).eval()
    features = torch.randn(2, 8, 3, 4)
    own = {task: net.task_features[task](features) for task in ("depth", "semantics")}
    predictions = net.predict([features])
    for task in own:
        torch.testing.assert_close(predictions[task], net.heads[task](net.distillation[task](own)))


def test_auxiliary_tasks_predict_once_under_their_name():
    net = PADNet(one_feature(), 8, {"depth": 1}, auxiliary={"edges": 2}, width=4)
    assert net.predictions == {"depth": "depth", "edges": "edges", "depth_initial": "depth"}
    assert list(net.heads) == ["depth"]
    features = torch.randn(2, 8, 3, 4)
    edges = net.initial_heads["edges"](net.eval().task_features["edges"](features))
    torch.testing.assert_close(net.predict([features])["edges"], edges)


@WIRINGS
@pytest.mark.parametrize(
    ("outputs", "auxiliary"),
    [
        ({"depth": 1}, {"edges": 2}),
        ({"depth": 1}, {"edges": 2, "normals": 3}),
        ({"depth": 1, "semantics": 5}, {}),
        ({"depth": 1, "semantics": 5}, {"edges": 2}),
        ({"depth": 1, "semantics": 5, "keypoints": 2}, {}),
        ({"depth": 1, "semantics": 5, "keypoints": 2}, {"edges": 2, "normals": 3}),
    ],
)
def test_shared_parameters_are_those_of_several_final_predictions(outputs, auxiliary, gate, message_conv):
    distillation = partial(Distillation, gate=gate, message_conv=message_conv)
    net = PADNet(one_feature(), 8, outputs, auxiliary=auxiliary, width=4, distillation=distillation)
    predictions = net(torch.randn(2, 3, 9, 13))
    check_shared([predictions[task] for task in (*outputs, *auxiliary)], net)


def test_a_task_that_is_auxiliary_as_well_is_refused():
    with pytest.raises(ValueError, match="found semantics in both; leave out of auxiliary"):
        PADNet(one_feature(), 8, {"depth": 1, "semantics": 5}, auxiliary={"semantics": 5}, width=4)


def test_an_auxiliary_task_named_like_an_initial_prediction_is_refused():
    with pytest.raises(ValueError, match="name of an initial prediction: found depth_initial; rename"):
        PADNet(one_feature(), 8, {"depth": 1}, auxiliary={"depth_initial": 5}, width=4)


def test_auxiliary_tasks_alone_are_refused():
    with pytest.raises(ValueError, match="PADNet should be for at least 1 task: found none"):
        PADNet(one_feature(), 8, {}, auxiliary={"edges": 2, "normals": 3}, width=4)


def test_an_unknown_gate_is_refused():
    with pytest.raises(ValueError, match=r'gate should be "source" or "target": found \'both\''):
        PADNet(one_feature(), 8, {"a": 1, "b": 1}, width=4, distillation=partial(Distillation, gate="both"))


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel should be odd: found 2"):
        Distillation(4, "a", ["b"], kernel=2)


@pytest.mark.parametrize(("sources", "found"), [([], "none"), (["b", "a"], "b, a")])
def test_a_task_takes_from_others(sources, found):
    with pytest.raises(ValueError, match=f"sources of a should be other tasks, at least one: found {found}"):
        Distillation(4, "a", sources)
