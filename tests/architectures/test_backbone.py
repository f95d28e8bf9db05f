"""Any backbone becomes a list of features; backbones of transformers need nothing more."""

import re
import sys
import warnings
from collections import namedtuple
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_uncertainty.architectures import JTRL, MTAN, CrossStitch, HardSharing, PADNet, PAPNet
from lightning_uncertainty.architectures._backbone import (
    as_backbone,
    check_channels,
    check_feature,
    feature_list,
    features_of,
)
from tests.architectures._architectures import CHANNELS, TWO, Pyramid, heads, outputs, stages

IMAGES = torch.randn(2, 3, 64, 96)
A, B = torch.ones(1, 4, 8, 8), torch.ones(1, 8, 4, 4)


@pytest.mark.parametrize(
    "output",
    [
        [A, B],
        (A, B),
        {"layer1": A, "layer2": B},
        {"blocks.2.add": A, "blocks.10.add": B},
        {0: A, 1: B},
        {"feature_maps": (A, B), "hidden": None},
    ],
)
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


Pooled = namedtuple("Pooled", ["features", "pooled"])


@pytest.mark.parametrize(
    "output",
    [
        {"last_hidden_state": A, "pooler_output": B},
        {"out": A, "aux": B},
        {"0": A, "1": B, "pool": B},
        {"low": A, "high": B},
        {"layer2": B, "layer1": A},
        {"layer1": A, "stage2": B},
        Pooled(A, B),
    ],
    ids=["pooler_output", "aux", "pool", "names", "not in order", "two stems", "named tuple"],
)
def test_names_that_do_not_say_what_is_a_feature_are_refused(output):
    names = ", ".join(output if isinstance(output, dict) else output._fields)
    with pytest.raises(
        ValueError, match=rf"under feature_maps, or under names that count up.*: found {names}; take Auto"
    ):
        feature_list(output)


@pytest.mark.parametrize("output", [{"out": A}, namedtuple("Only", ["features"])(A)])
def test_a_single_name_says_all(output):
    assert feature_list(output)[0] is A


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
    with pytest.raises(ValueError, match=r"stage 1 should be \[B, 9, h, w\]: found \[1, 8, 4, 4\]; correct channels"):
        check_channels([A, B], [4, 9], 2)
    with pytest.raises(ValueError, match=r"features of 1 stages.*found 2"):
        check_channels([A, B], [4], 2)


@pytest.mark.parametrize(
    ("shape", "dimensions", "mend"),
    [
        ((2, 7, 5, 9), 2, r"\(NHWC\): have the backbone return x.movedim\(-1, 1\)$"),
        ((2, 7, 5, 6, 9), 3, r"\(NDHWC\): .*x.movedim\(-1, 1\)$"),
        ((2, 7, 9), 1, r"\(tokens, \[B, N, C\]\): .*x.movedim\(-1, 1\)$"),
        ((2, 35, 9), 2, r"\(tokens, \[B, N, C\]\): .*x.movedim\(-1, 1\).unflatten\(2, \(h, w\)\)$"),
        ((2, 7, 5, 9), None, r"\(NHWC\): .*x.movedim\(-1, 1\)$"),
        ((2, 9, 7), 2, "give dimensions=1, as its places have"),
        ((2, 9), 2, "give features with places, or dimensions=0"),
        ((2, 8, 5, 9, 9, 8), 2, "correct channels"),
        ((9,), 2, "correct channels"),
    ],
)
def test_the_layout_is_named(shape, dimensions, mend):
    places = "..." if dimensions is None else ("l", "h, w", "d, h, w")[dimensions - 1]
    found = re.escape(str(list(shape)))
    with pytest.raises(ValueError, match=rf"it should be \[B, 9, {places}\]: found {found}; .*{mend}"):
        check_feature(torch.ones(shape), 9, dimensions, "it")


def test_the_advice_for_a_layout_mends_it():
    x = torch.randn(2, 35, 9)
    check_feature(x.movedim(-1, 1).unflatten(2, (7, 5)), 9, 2, "it")
    torch.testing.assert_close(x.movedim(-1, 1).unflatten(2, (7, 5))[0, :, 1, 2], x[0, 7])


@pytest.mark.parametrize("name", ["CrossStitch", "JTRL", "MTAN"])
def test_every_architecture_that_knows_channels_names_the_layout(name):
    class Last(nn.Module):
        def __init__(self, stage):
            super().__init__()
            self.stage = stage

        def forward(self, x):
            return self.stage(x.movedim(-1, 1) if x.shape[-1] in CHANNELS else x).movedim(1, -1)

    parts = [Last(stage) for stage in stages()]
    net = {
        "CrossStitch": lambda: CrossStitch(parts, heads(TWO), CHANNELS),
        "JTRL": lambda: JTRL(parts, CHANNELS, outputs(TWO), width=32),
        "MTAN": lambda: MTAN(parts, heads(TWO), CHANNELS),
    }[name]()
    with pytest.raises(ValueError, match=r"stage 0 .*should be \[B, 8, .*\]: found \[2, 32, 48, 8\]; .*NHWC"):
        net(IMAGES)


STAGES = {"out_features": ["stage1", "stage2", "stage3"]}
CONFIGS = {  # of small networks with random weights
    "ResNet": {"embedding_size": 8, "hidden_sizes": CHANNELS, "depths": [1, 1, 1], "layer_type": "basic"},
    "Swin": {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 2, 2], "window_size": 4},
    "ConvNext": {"num_stages": 3, "hidden_sizes": CHANNELS, "depths": [1, 1, 1]},
    "Dinov2": {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "patch_size": 8,
        "image_size": 64,
    },
    "PvtV2": {
        "num_encoder_blocks": 3,
        "hidden_sizes": CHANNELS,
        "depths": [1, 1, 1],
        "num_attention_heads": [1, 1, 2],
        "sr_ratios": [4, 2, 1],
        "mlp_ratios": [2, 2, 2],
        "patch_sizes": [7, 3, 3],
        "strides": [4, 2, 2],
    },
}


@cache
def transformer(name, auto="AutoBackbone"):
    """A backbone of transformers, which `make test` installs apart."""
    sys.path.append(str(Path(sys.prefix) / "transformers"))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        config = getattr(transformers, f"{name}Config")(**CONFIGS[name], **STAGES)
        return getattr(transformers, auto).from_config(config)


ON_FEATURES = {
    "HardSharing": lambda backbone, channels: HardSharing(backbone, heads(TWO, channels[-1])),
    "MTAN": lambda backbone, channels: MTAN(backbone, heads(TWO, channels[-1]), channels),
    "PADNet": lambda backbone, channels: PADNet(backbone, channels[-1], outputs(TWO), width=16),
    "PAPNet": lambda backbone, channels: PAPNet(backbone, channels[-1], outputs(TWO), width=16),
    "JTRL": lambda backbone, channels: JTRL(backbone, channels, outputs(TWO), width=32),
}
DIAGONAL = set(zip(ON_FEATURES, CONFIGS, strict=True))


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        pytest.param(*cell, marks=() if cell in DIAGONAL else pytest.mark.matrix)
        for cell in product(ON_FEATURES, CONFIGS)
    ],
)
def test_backbones_of_transformers_fit(name, backbone):
    made = transformer(backbone)
    predictions = ON_FEATURES[name](made, made.channels)(IMAGES)
    assert all(prediction.shape[-2:] == IMAGES.shape[-2:] for prediction in predictions.values())
    sum(prediction.sum() for prediction in predictions.values()).backward()
    idle = [key for key, parameter in made.named_parameters() if parameter.grad is None]
    made.zero_grad()
    assert [key for key in idle if "norm" not in key and "mask_token" not in key] == []  # norms of unused features


@pytest.mark.parametrize("name", ["ResNet", pytest.param("Dinov2", marks=pytest.mark.matrix)])
def test_the_pooled_output_of_a_whole_model_is_not_taken_for_features(name):
    net = HardSharing(transformer(name, "AutoModel"), heads(TWO))
    with pytest.raises(ValueError, match=r"found last_hidden_state, pooler_output; take AutoBackbone of transformers"):
        net(IMAGES)


def test_stages_of_transformers_fit():
    resnet = transformer("ResNet")
    first = nn.Sequential(resnet.embedder, resnet.encoder.stages[0])
    predictions = CrossStitch([first, *resnet.encoder.stages[1:]], heads(TWO), CHANNELS)(IMAGES)
    assert {task: prediction.shape for task, prediction in predictions.items()} == {
        "depth": (2, 1, 64, 96), "semantics": (2, 3, 64, 96)
    }  # fmt: skip
