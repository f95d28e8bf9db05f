import pytest
import torch
from torch import nn

from lightning_uncertainty._tensors import Float32Module, promote


class Kept(Float32Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1 / 3, 2.003]))
        self.register_buffer("scale", torch.tensor([1e-9, 7.0001]))
        self.register_buffer("count", torch.tensor([300], dtype=torch.int64))
        self.child = nn.Linear(2, 2)


HALF_CASTS = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "to(dtype)": lambda module: module.to(torch.bfloat16),
    "to(device, dtype)": lambda module: module.to("cpu", torch.float16),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_promote_widens_to_float32(dtype):
    x = torch.tensor([0, 1, 1]).to(dtype)
    assert promote(x).dtype is torch.float32
    assert promote(x).tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_promote_leaves_wide_types_alone(dtype):
    x = torch.ones(2, dtype=dtype)
    assert promote(x) is x


@pytest.mark.parametrize("cast", HALF_CASTS.values(), ids=HALF_CASTS.keys())
def test_half_casts_change_no_digit(cast):
    kept = Kept()
    before = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
    weight = kept.weight
    host = nn.Sequential(nn.Linear(2, 2), kept)
    cast(host)
    assert host[0].weight.dtype in (torch.float16, torch.bfloat16)
    assert kept.dtypes() == {torch.float32}
    assert kept.weight is weight  # an optimizer may hold it
    for name, tensor in kept.state_dict().items():
        assert tensor.equal(before[name]), name


def test_half_casts_leave_gradients_float32():
    kept = Kept()
    kept.weight.sum().backward()
    kept.bfloat16()
    assert kept.weight.grad.dtype is torch.float32


def test_double_and_back():
    kept = Kept().double()
    assert kept.dtypes() == {torch.float64}
    assert kept.count.dtype is torch.int64
    assert kept.half().dtypes() == {torch.float64}  # a cast to half is refused, not turned into one to float32
    assert kept.float().dtypes() == {torch.float32}


def test_moves_still_move():
    kept = Kept().to("meta", torch.bfloat16)
    assert {tensor.device.type for tensor in [*kept.parameters(), *kept.buffers()]} == {"meta"}
    assert kept.dtypes() == {torch.float32}
    assert kept.to_empty(device="cpu").weight.device.type == "cpu"


def test_dtypes_are_those_of_floating_point_tensors():
    kept = Kept()
    kept.register_buffer("wide", torch.ones(1, dtype=torch.float64))
    assert kept.dtypes() == {torch.float32, torch.float64}
