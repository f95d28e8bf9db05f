import pytest
import torch
from torch import nn

from lightning_uncertainty.architectures.pad_net import PADNet
from lightning_uncertainty.architectures.pap_net import PAPNet
from tests.architectures._architectures import one_feature

BOTH = pytest.mark.parametrize("architecture", [PADNet, PAPNet])
TASKS = {"depth": 1, "semantics": 5, "normals": 3}


@BOTH
@pytest.mark.parametrize("count", [2, 3])
def test_final_predictions_come_first_then_initial_ones(architecture, count):
    tasks = dict(list(TASKS.items())[:count])
    net = architecture(one_feature(), 8, tasks, width=4)
    predictions = net(torch.randn(2, 3, 17, 23))
    assert list(predictions) == list(net.predictions) == [*tasks, *(f"{task}_initial" for task in tasks)]
    for name, task in net.predictions.items():
        assert name.removesuffix("_initial") == task
        assert predictions[name].shape == (2, tasks[task], 17, 23)
    assert net.by_task() == [[task, f"{task}_initial"] for task in tasks]


@BOTH
def test_initial_predictions_are_linear_in_the_features_of_their_task(architecture):
    net = architecture(one_feature(), 8, TASKS, width=4).eval()
    features = torch.randn(2, 8, 3, 4)
    predictions = net.predict([features])
    for task in TASKS:
        head = net.initial_heads[task]
        own = net.task_features[task](features)
        expected = torch.einsum("oi,bihw->bohw", head.weight[..., 0, 0], own) + head.bias[:, None, None]
        torch.testing.assert_close(predictions[f"{task}_initial"], expected)


@BOTH
def test_only_the_last_features_are_used(architecture):
    net = architecture([nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 8, 3, stride=2)], 8, TASKS, width=4).eval()
    images = torch.randn(2, 3, 17, 23)
    features = net.backbone[1](net.backbone[0](images))
    from_images, from_features = net(images), net([torch.full((2, 6, 8, 11), torch.nan), features], size=(17, 23))
    for name, prediction in from_images.items():
        torch.testing.assert_close(from_features[name], prediction)


@BOTH
def test_a_head_that_is_given_takes_the_place_of_the_default(architecture):
    width = 8 if architecture is PAPNet else 4
    given = nn.Conv2d(4, 5, 1)
    net = architecture(one_feature(), 8, TASKS, width=width, heads={"semantics": given})
    assert list(net.heads) == list(TASKS)
    assert net.heads["semantics"] is given
    last = [net.heads[task][-1] for task in ("depth", "normals")]
    assert [(layer.in_channels, layer.out_channels, layer.kernel_size) for layer in last] == [
        (4, 1, (1, 1)),
        (4, 3, (1, 1)),
    ]
    assert net.heads["depth"][0][0].kernel_size == (3, 3)


@BOTH
def test_every_parameter_gets_a_gradient(architecture):
    net = architecture(one_feature(), 8, TASKS, width=4)
    sum(prediction.square().mean() for prediction in net(torch.randn(2, 3, 17, 23)).values()).backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


@BOTH
def test_a_head_for_no_task_is_refused(architecture):
    with pytest.raises(ValueError, match=r"heads should be for tasks of outputs, depth, .*: found dept; correct"):
        architecture(one_feature(), 8, TASKS, width=4, heads={"dept": nn.Identity()})


@BOTH
def test_a_task_named_like_an_initial_prediction_is_refused(architecture):
    with pytest.raises(ValueError, match=r"name of an initial prediction: found depth_initial; rename"):
        architecture(one_feature(), 8, {"depth": 1, "depth_initial": 1}, width=4)


@BOTH
def test_one_task_is_too_few(architecture):
    with pytest.raises(ValueError, match="at least 2 tasks: found depth"):
        architecture(one_feature(), 8, {"depth": 1}, width=4)


@BOTH
@pytest.mark.parametrize(
    ("shape", "mend"),
    [
        ((2, 7, 3, 4), "correct channels"),
        ((2, 8), "give features with places"),
        ((2, 8, 5), "give dimensions=1"),
        ((2, 3, 4, 8), r"channels stand last there \(NHWC\): have the backbone return x.movedim\(-1, 1\)$"),
        ((2, 12, 8), r".*\(tokens, \[B, N, C\]\): .* x.movedim\(-1, 1\).unflatten\(2, \(h, w\)\)$"),
    ],
)
def test_features_of_another_shape_are_refused(architecture, shape, mend):
    net = architecture(one_feature(), 8, TASKS, width=4)
    with pytest.raises(ValueError, match=rf"should be \[B, 8, h, w\]: found \[2, .*\]; {mend}"):
        net([torch.ones(shape)])
