import pytest
import torch
from torch import nn

from lightning_uncertainty.heads import Rescale


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 1, 3), (5, 1, 3, 2)])
def test_one_number_for_all(shape):
    output = torch.randn(shape)
    torch.testing.assert_close(Rescale(4.0, 2.5)(output), 4.0 + 2.5 * output)


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 3), (5, 3, 3, 3)])
def test_one_number_for_each_channel(shape):
    mean, std = [1.0, -2.0, 30.0], [0.5, 1.0, 2.0]
    output = torch.randn(shape)
    rescaled = Rescale(mean, std)(output)
    for channel in range(3):
        torch.testing.assert_close(rescaled[:, channel], mean[channel] + std[channel] * output[:, channel])


def test_undoes_standardisation():
    labels = torch.tensor([[3000.0, 0.1], [4207.0, 0.4], [5100.0, 0.2]])
    mean, std = labels.mean(0), labels.std(0)
    rescale = Rescale(mean.tolist(), std.tolist())
    torch.testing.assert_close(rescale((labels - mean) / std), labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_computes_in_float32(dtype):
    head = nn.Sequential(nn.Identity(), Rescale(4207.0, 802.0)).to(dtype)
    output = torch.tensor([[0.0], [0.25]], dtype=dtype)
    assert head(output).tolist() == [[4207.0], [4407.5]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(output).tolist() == [[4207.0], [4407.5]]


def test_float64_stays():
    output = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert Rescale(1.0, 2.0).double()(output).dtype is torch.float64
    assert Rescale(1.0, 2.0)(output).dtype is torch.float64


def test_constants_are_no_parameters_and_travel_in_checkpoints():
    rescale = Rescale([1.0, 2.0], [3.0, 4.0])
    assert list(rescale.parameters()) == []
    other = Rescale([0.0, 0.0], [1.0, 1.0])
    other.load_state_dict(rescale.state_dict())
    assert other(torch.ones(1, 2)).tolist() == [[4.0, 6.0]]


def test_keeps_its_own_copy_of_the_numbers():
    mean = torch.tensor([1.0])
    rescale = Rescale(mean, torch.tensor([2.0]))
    mean.fill_(100.0)
    assert rescale(torch.zeros(1, 1)).item() == 1.0


def test_gradient_is_scaled_by_the_deviation():
    output = torch.zeros(3, 1, requires_grad=True)
    Rescale(5.0, 7.0)(output).sum().backward()
    assert output.grad.flatten().tolist() == [7.0, 7.0, 7.0]


@pytest.mark.parametrize(
    ("mean", "std", "match"),
    [
        ([1.0, 2.0], [1.0], "of one length: found 2 and 1"),
        (float("nan"), 1.0, "mean should be finite"),
        (float("inf"), 1.0, "mean should be finite"),
        (1.0, 0.0, "std positive"),
        (1.0, -1.0, "std positive"),
        (1.0, float("nan"), "std positive"),
        ([1.0, 1.0], [1.0, float("inf")], "std positive"),
    ],
)
def test_numbers_that_make_no_sense(mean, std, match):
    with pytest.raises(ValueError, match=match):
        Rescale(mean, std)


def test_made_on_the_meta_device_it_finds_its_numbers_again():
    with torch.device("meta"):
        head = Rescale(mean=[4.0, 5.0], std=torch.tensor([2.0, 3.0], device="cpu"))
    assert head.mean.is_meta
    head.to_empty(device="cpu").mean.fill_(7.0)
    head.reset_parameters()
    assert head(torch.ones(1, 2)).tolist() == [[6.0, 8.0]]
