"""Layers for any number of dimensions."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_uncertainty.architectures import MTAN, Bottleneck, Distillation, PADNet
from lightning_uncertainty.architectures._blocks import (
    MeanOverPlaces,
    ResidualBlock,
    check_dimensions,
    conv_bn_relu,
    convolution,
    resize,
    shape,
)

SIZES = [(), (7,), (5, 7), (3, 5, 7)]
STAGES = [nn.Conv1d(3, 8, 3, 2), nn.Conv1d(8, 8, 3, 2)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("block", [conv_bn_relu, Bottleneck, ResidualBlock])
def test_blocks_keep_every_place(block, size):
    made = block(6, 8, dimensions=len(size))
    assert made(torch.randn(4, 6, *size)).shape == (4, 8, *size)


@pytest.mark.parametrize("size", SIZES[1:])
def test_a_kernel_of_one_is_a_linear_layer_at_every_place(size):
    layer, x = convolution(len(size), 6, 8), torch.randn(4, 6, *size)
    linear = convolution(0, 6, 8)
    linear.load_state_dict({"weight": layer.weight.flatten(1), "bias": layer.bias})
    torch.testing.assert_close(layer(x).movedim(1, -1), linear(x.movedim(1, -1)))


def test_an_image_of_one_row_is_a_sequence_and_a_volume_of_one_slice_an_image():
    for one, two, size in ((1, 2, (7,)), (2, 3, (5, 7))):
        x = torch.randn(4, 6, *size)
        torch.manual_seed(0)
        small, large = convolution(one, 6, 8, 3), convolution(two, 6, 8, 3)
        large.load_state_dict({"weight": F.pad(small.weight.unsqueeze(2), _middle(two)), "bias": small.bias})
        torch.testing.assert_close(large(x.unsqueeze(2))[:, :, 0], small(x))


def _middle(dimensions):
    return (0, 0) * (dimensions - 1) + (1, 1)


@pytest.mark.parametrize(("size", "mode"), [((9,), "linear"), ((9, 4), "bilinear"), ((6, 9, 4), "trilinear")])
def test_resizing_is_linear_in_every_dimension(size, mode):
    x = torch.randn(2, 3, *SIZES[len(size)])
    torch.testing.assert_close(resize(x, size), F.interpolate(x, size=size, mode=mode, align_corners=False))
    assert resize(x, SIZES[len(size)]) is x


def test_the_mean_is_over_all_places():
    x = torch.randn(2, 3, 4, 5, 6)
    torch.testing.assert_close(MeanOverPlaces()(x), x.mean((2, 3, 4)))


def test_shapes_are_written_as_in_the_docs():
    assert [shape(8, n) for n in range(4)] == ["[B, 8]", "[B, 8, l]", "[B, 8, h, w]", "[B, 8, d, h, w]"]


@pytest.mark.parametrize("dimensions", [-1, 4, 1.5, True, "2"])
def test_other_dimensions_are_refused(dimensions):
    with pytest.raises(
        ValueError, match=r"dimensions of MTAN should be one of 0 \(vectors\), 1 \(sequences\), .*: found"
    ):
        check_dimensions(dimensions, "MTAN")


@pytest.mark.parametrize(
    "make",
    [
        lambda: MTAN(STAGES, {"depth": nn.Conv1d(8, 1, 1)}, [8, 8], block=Bottleneck, dimensions=1),
        lambda: PADNet(STAGES, 8, {"a": 1, "b": 1}, width=8, distillation=Distillation, dimensions=1),
    ],
    ids=["MTAN", "PADNet"],
)
def test_blocks_of_the_users_choice_should_be_for_the_same_dimensions(make):
    with pytest.raises(
        ValueError, match=r"should be for 1 dimensions \(sequences\): found a Conv2d; .*partial\(\.\.\."
    ):
        make()
    MTAN(STAGES, {"depth": nn.Conv1d(8, 1, 1)}, [8, 8], block=partial(Bottleneck, dimensions=1), dimensions=1)
