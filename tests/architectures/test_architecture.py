"""What all architectures are built on."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_uncertainty.architectures import JTRL, CrossStitch, HardSharing, PADNet, PAPNet

STAGES = [nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2)]


@pytest.mark.parametrize("name", ["a.b", "two words", "", "1st", "values", "type"])
@pytest.mark.parametrize(
    "make",
    [
        lambda name: HardSharing(STAGES, {name: nn.Conv2d(8, 1, 1)}),
        lambda name: PADNet(STAGES, 8, {"depth": 1}, auxiliary={name: 1}, width=8),
        lambda name: JTRL(STAGES, [8, 8], {"depth": 1, name: 1}, width=8),
    ],
    ids=["HardSharing", "PADNet", "JTRL"],
)
def test_names_that_no_module_can_have_are_refused(make, name):
    with pytest.raises(ValueError, match=rf"a task's name should be letters, digits and underscores.*found '{name}'"):
        make(name)


def test_predictions_of_a_task_that_has_several_are_grouped():
    net = PADNet(STAGES, 8, {"depth": 1, "kind": 2}, auxiliary={"edges": 1}, width=8)
    assert net.by_task() == [["depth", "depth_initial"], ["kind", "kind_initial"]]
    assert HardSharing(STAGES, {"depth": nn.Conv2d(8, 1, 1)}).by_task() == []


def test_only_dense_predictions_are_resized():
    net = HardSharing(STAGES, {"map": nn.Identity(), "flat": nn.Identity()})
    dense, flat = torch.randn(2, 3, 4, 5), torch.randn(2, 3)
    assert net.resized({"flat": flat}, (8, 8))["flat"] is flat
    assert net.resized({"map": dense}, None)["map"] is dense
    assert net.resized({"map": dense}, (4, 5))["map"] is dense
    expected = F.interpolate(dense, size=(9, 11), mode="bilinear")
    torch.testing.assert_close(net.resized({"map": dense}, (9, 11))["map"], expected)


class Rotation(nn.Module):
    """A matrix for each image."""

    def forward(self, features):
        return features.mean((2, 3)).repeat(1, 2)[:, :9].reshape(-1, 1, 3, 3)


def test_a_matrix_is_no_image_where_its_task_is_not_dense():
    images, heads = torch.randn(2, 3, 33, 47), {"rotation": Rotation(), "depth": nn.Conv2d(8, 1, 1)}
    outputs = HardSharing(STAGES, heads, dense=["depth"])(images)
    assert {task: output.shape[2:] for task, output in outputs.items()} == {"rotation": (3, 3), "depth": (33, 47)}


SEQUENCE = (lambda: [nn.Conv1d(3, 8, 3, 2), nn.Conv1d(8, 8, 3, 2)], nn.Conv1d, torch.randn(2, 3, 33))
VOLUME = (lambda: [nn.Conv3d(3, 8, 3, 2), nn.Conv3d(8, 8, 3, 2)], nn.Conv3d, torch.randn(2, 3, 9, 11, 13))


@pytest.mark.parametrize("inputs", [SEQUENCE, VOLUME], ids=["sequence", "volume"])
@pytest.mark.parametrize("architecture", [HardSharing, lambda *given, **named: CrossStitch(*given, [8, 8], **named)])
def test_without_images_what_is_dense_is_asked_for(architecture, inputs):
    stages, convolution, x = inputs
    heads = {"depth": convolution(8, 1, 1), "kind": convolution(8, 2, 1)}
    with pytest.raises(
        ValueError, match=r"should be told which .* dense, as inputs are no images: found .*'depth' for"
    ):
        architecture(stages(), heads)(x)
    left = architecture(stages(), heads, dense=[])(x)
    outputs = architecture(stages(), heads, dense=["depth"])(x)
    assert left["depth"].shape[2:] == left["kind"].shape[2:] == outputs["kind"].shape[2:] != x.shape[2:]
    assert outputs["depth"].shape[2:] == x.shape[2:]
    mode = "linear" if x.dim() == 3 else "trilinear"
    net = architecture(stages(), heads, dense=["depth"]).eval()
    coarse = net.predict(x)["depth"]
    torch.testing.assert_close(net(x)["depth"], F.interpolate(coarse, size=x.shape[2:], mode=mode))


def test_a_dense_prediction_without_places_is_refused():
    flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = HardSharing(STAGES, {"depth": flat}, dense=["depth"])
    with pytest.raises(ValueError, match=r"dense tasks should have the 2 dimensions.*found \[2, 8\] for 'depth'; let"):
        net(torch.randn(2, 3, 33, 47))


@pytest.mark.parametrize(("dense", "found"), [(["dept"], "dept"), ("depth", "'depth'"), (["depth", 3], "3")])
def test_dense_names_tasks(dense, found):
    with pytest.raises(ValueError, match=rf"dense should list names of tasks, of depth, kind: found {found}; write"):
        PADNet(STAGES, 8, {"depth": 1, "kind": 2}, width=8, dense=dense)


def test_an_auxiliary_task_and_an_initial_prediction_follow_their_task():
    net = PADNet(STAGES, 8, {"depth": 1, "kind": 2}, auxiliary={"age": 1}, width=8, dense=["depth"])
    outputs = net(torch.randn(2, 3, 33, 47))
    shapes = {name: tuple(output.shape[1:]) for name, output in outputs.items()}
    assert shapes == {
        "depth": (1, 33, 47),
        "kind": (2,),
        "age": (1,),
        "depth_initial": (1, 33, 47),
        "kind_initial": (2,),
    }


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda **named: PAPNet(STAGES, 8, {"depth": 1, "kind": 2}, width=8, **named), "affinities"),
        (lambda **named: JTRL(STAGES, [8, 8], {"depth": 1, "kind": 2}, width=8, **named), "attend to each other"),
    ],
    ids=["PAPNet", "JTRL"],
)
def test_where_the_wiring_has_no_meaning_for_a_task_without_places_it_is_refused(make, why):
    with pytest.raises(
        ValueError, match=rf"should be dense, as .*{why}.*: found kind, left out of dense; .*head=\.\.\."
    ):
        make(dense=["depth"])
    with pytest.raises(ValueError, match=r"one of 1 \(sequences\), 2 \(images\), 3 \(volumes\): found 0; vectors"):
        make(dimensions=0)


def test_heads_may_take_the_whole_pyramid_and_predict_one_number_an_image():
    class Count(nn.Module):
        def forward(self, features):
            return torch.stack([feature.mean((1, 2, 3)) for feature in features], 1)

    net = HardSharing(STAGES, {"count": Count()}, pyramid=True)
    images = torch.randn(2, 3, 16, 16)
    features = net.features(images)
    assert len(features) == 2
    torch.testing.assert_close(net(images)["count"], Count()(features))
