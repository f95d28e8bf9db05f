import pytest
import torch
from torch.nn import functional as F

from lightning_uncertainty.likelihoods import (
    Generic,
)
from tests.likelihoods._likelihoods import close, draw, mean


def test_generic_is_what_it_is_given():
    output, target = draw("generic", 6, 3)
    huber = Generic(lambda output, target: F.huber_loss(output, target, reduction="none"))
    close(mean(huber.loss(output, target)), F.huber_loss(output, target))


def test_generic_needs_its_error():
    with pytest.raises(ValueError, match=r"Generic\(elementwise=...\)"):
        Generic().loss(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"one error per label \[2\]: found \[\].*reduction=\"none\""):
        Generic(F.mse_loss).loss(torch.zeros(2), torch.zeros(2))


@pytest.mark.parametrize("wrong", ["mse", 3, torch.nn.MSELoss])
def test_an_error_is_a_function(wrong):
    with pytest.raises(ValueError, match="elementwise should be a function of output and target"):
        Generic(wrong)
