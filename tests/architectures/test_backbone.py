"""Any backbone becomes a list of features; backbones of transformers need nothing more."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_uncertainty.architectures import JTRL, MTAN, CrossStitch, HardSharing, PADNet, PAPNet
from lightning_uncertainty.architectures._backbone import as_backbone, check_channels, feature_list, features_of
from tests.architectures._architectures import CHANNELS, TWO, Pyramid, heads, outputs, stages

IMAGES = torch.randn(2, 3, 64, 96)
A, B = torch.ones(1, 4, 8, 8), torch.ones(1, 8, 4, 4)


@pytest.mark.parametrize("output", [[A, B], (A, B), {"low": A, "high": B}, {"feature_maps": (A, B), "hidden": None}])
def test_features_come_in_any_container(output):
    assert all(found is expected for found, expected in zip(feature_list(output), (A, B), strict=True))


def test_a_tensor_is_one_feature():
    assert feature_list(A)[0] is A


@pytest.mark.parametrize("output", [None, [], {}, [A, "b"], {"feature_maps": None}, "features"])
def test_anything_else_is_refused(output):
    with pytest.raises(
        ValueError, match=r"a backbone should return a tensor, or a sequence or mapping of tensors: found"
    ):
        feature_list(output)


def test_stages_run_in_turn_and_each_gives_a_feature():
    parts = stages()
    features = features_of(as_backbone(parts), IMAGES)
    expected = IMAGES
    for stage, feature in zip(parts, features, strict=True):
        expected = stage(expected)
        torch.testing.assert_close(feature, expected)


def test_a_module_gives_what_it_returns_and_keeps_its_keys():
    backbone = Pyramid()
    assert as_backbone(backbone) is backbone
    assert [feature.shape[1] for feature in features_of(backbone, IMAGES)] == CHANNELS
    assert set(HardSharing(backbone, heads(TWO)).state_dict()) > {f"backbone.{key}" for key in backbone.state_dict()}


@pytest.mark.parametrize(("given", "found"), [([], "none"), ([nn.ReLU(), 3], "int")])
def test_stages_should_be_modules(given, found):
    with pytest.raises(ValueError, match=f"stages of a backbone should be modules, at least one: found {found}"):
        as_backbone(given)


def test_channels_that_do_not_fit_name_the_stage_and_the_shape():
    with pytest.raises(ValueError, match=r"stage 1 of the backbone should have 9 channels.*found \[1, 8, 4, 4\]"):
        check_channels([A, B], [4, 9])
    with pytest.raises(ValueError, match=r"features of 1 stages.*found 2"):
        check_channels([A, B], [4])


@pytest.fixture(scope="module")
def resnet():
    """A backbone of transformers, which `make test` installs apart, with random weights."""
    sys.path.append(str(Path(sys.prefix) / "transformers"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoBackbone, ResNetConfig

        config = ResNetConfig(
            embedding_size=8, hidden_sizes=CHANNELS, depths=[1, 1, 1], layer_type="basic",
            out_features=["stage1", "stage2", "stage3"],
        )  # fmt: skip
        return AutoBackbone.from_config(config)


ON_FEATURES = {
    "HardSharing": lambda backbone: HardSharing(backbone, heads(TWO)),
    "MTAN": lambda backbone: MTAN(backbone, heads(TWO), CHANNELS),
    "PADNet": lambda backbone: PADNet(backbone, CHANNELS[-1], outputs(TWO), width=16),
    "PAPNet": lambda backbone: PAPNet(backbone, CHANNELS[-1], outputs(TWO), width=16),
    "JTRL": lambda backbone: JTRL(backbone, CHANNELS, outputs(TWO), width=32),
}


@pytest.mark.parametrize("name", ON_FEATURES)
def test_backbones_of_transformers_fit(name, resnet):
    net = ON_FEATURES[name](resnet)
    predictions = net(IMAGES)
    assert all(prediction.shape[-2:] == IMAGES.shape[-2:] for prediction in predictions.values())
    sum(prediction.sum() for prediction in predictions.values()).backward()
    assert all(parameter.grad is not None for parameter in resnet.parameters())
    resnet.zero_grad()


def test_stages_of_transformers_fit(resnet):
    first = nn.Sequential(resnet.embedder, resnet.encoder.stages[0])
    predictions = CrossStitch([first, *resnet.encoder.stages[1:]], heads(TWO), CHANNELS)(IMAGES)
    assert {task: prediction.shape for task, prediction in predictions.items()} == {
        "depth": (2, 1, 64, 96), "semantics": (2, 3, 64, 96)
    }  # fmt: skip
