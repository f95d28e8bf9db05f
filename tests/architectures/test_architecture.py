"""What all architectures are built on."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_uncertainty.architectures import JTRL, HardSharing, PADNet
from lightning_uncertainty.architectures._architecture import resize

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
    dense, flat = torch.randn(2, 3, 4, 5), torch.randn(2, 3)
    assert resize(flat, (8, 8)) is flat
    assert resize(dense, None) is dense
    assert resize(dense, (4, 5)) is dense
    expected = F.interpolate(dense, size=(9, 11), mode="bilinear")
    torch.testing.assert_close(resize(dense, (9, 11)), expected)


def test_heads_may_take_the_whole_pyramid_and_predict_one_number_an_image():
    class Count(nn.Module):
        def forward(self, features):
            return torch.stack([feature.mean((1, 2, 3)) for feature in features], 1)

    net = HardSharing(STAGES, {"count": Count()}, pyramid=True)
    images = torch.randn(2, 3, 16, 16)
    features = net.features(images)
    assert len(features) == 2
    torch.testing.assert_close(net(images)["count"], Count()(features))
