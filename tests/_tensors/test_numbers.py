import numpy
import pytest
import torch

from lightning_uncertainty._tensors import by_name, is_number


@pytest.mark.parametrize("value", [1, 0.5, True, numpy.float32(2), torch.tensor(3.0), float("nan"), float("inf")])
def test_one_real_number_is_a_number(value):
    assert is_number(value)


@pytest.mark.parametrize("value", [None, "1", [1.0], 1j, torch.ones(1), torch.tensor(1j), numpy.ones(1), {}, int])
def test_nothing_else_is(value):
    assert not is_number(value)


def test_numbers_are_given_by_name():
    assert by_name(None, "weights") == {}
    assert by_name({"a": 1}, "weights") == {"a": 1}
    for wrong in ([1.0], 2.0, "a", 0):
        with pytest.raises(ValueError, match=r"weights should be given by task name, as in \{'depth': 1.0\}: found"):
            by_name(wrong, "weights")
