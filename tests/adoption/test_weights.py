from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import nn

from lightning_uncertainty.adoption import HostWeight
from lightning_uncertainty.adoption._weights import WeightLeaves


class Owner(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1).double()
        self.number, self.one, self.single = 0.25, np.float32(2.0), torch.tensor(3.0)
        self.register_buffer("matrix", torch.arange(6).reshape(2, 3))
        self.trained = nn.Parameter(torch.ones(()))
        self.array, self.word, self.flag, self.nothing = np.ones(2), "1.0", True, None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("number", 0.25),
        ("one", 2.0),
        ("single", 3.0),
        ("matrix[4]", 4.0),
        ("matrix[-1]", 5.0),
        ("matrix[1][0]", 3.0),
        ("matrix[-1][-2]", 4.0),
    ],
)
def test_a_weight_is_a_leaf_of_its_value(path, value):
    owner = Owner()
    before = dict(vars(owner))
    with ExitStack() as stack:
        leaves = WeightLeaves(owner, {"task": HostWeight(path)}, stack)
        leaf = leaves.of("task", list(leaves.leaves))
        assert leaf.item() == value
        assert leaf.requires_grad
        (total,) = (leaf * 2,)
        assert torch.autograd.grad(total, leaves.leaves)[0].sum() == 2
    assert dict(vars(owner)) == before
    assert owner.matrix.dtype == torch.int64


def test_a_number_has_the_dtype_of_the_host():
    with ExitStack() as stack:
        assert WeightLeaves(Owner(), {"task": HostWeight("number")}, stack).leaves[0].dtype == torch.float64


def test_elements_of_one_tensor_have_one_leaf():
    with ExitStack() as stack:
        parts = {name: HostWeight(f"matrix[{index}]") for index, name in enumerate("abc")}
        leaves = WeightLeaves(Owner(), parts, stack)
        assert len(leaves.leaves) == 1
        assert [leaves.of(name, list(leaves.leaves)).item() for name in "abc"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("trained", "not trained: found one that requires a gradient"),
        ("word", "found a str"),
        ("flag", "found a bool"),
        ("nothing", "found a NoneType"),
        ("array", "found a ndarray, whose elements cannot be tensors"),
        ("array[0]", "found a ndarray, whose elements cannot be tensors"),
        ("matrix", r"should be one weight: found a tensor of shape \[2, 3\]"),
        ("matrix[6]", r"should be one weight: found a tensor of shape \[2, 3\]"),
        ("matrix[0][3]", r"should be one weight: found a tensor of shape \[2, 3\]"),
        ("matrix[0][0][0]", r"should be one weight: found a tensor of shape \[2, 3\]"),
        ("matrix['a']", r"should be one weight: found a tensor of shape \[2, 3\]"),
    ],
)
def test_what_is_no_weight_is_told(path, found):
    owner = Owner()
    before = dict(vars(owner))
    with pytest.raises(RuntimeError, match=found), ExitStack() as stack:
        WeightLeaves(owner, {"task": HostWeight(path)}, stack)
    assert dict(vars(owner)) == before


def test_a_half_weight_is_as_wide_as_the_host():
    owner = Owner()
    owner.half = torch.ones((), dtype=torch.float16)
    with ExitStack() as stack:
        assert WeightLeaves(owner, {"task": HostWeight("half")}, stack).leaves[0].dtype == torch.float64
    assert owner.half.dtype == torch.float16
