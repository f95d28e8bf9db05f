import math

import pytest
import torch
from torch import distributions
from torch.nn import functional as F

from lightning_uncertainty.likelihoods import (
    Poisson,
)
from tests._numbers import float64
from tests.likelihoods._likelihoods import VECTORS, close, draw, mean, vector_close


def test_poisson_is_twice_the_log_likelihood_ratio():
    output, target = draw("poisson", 40)
    assert (target == 0).any()
    ratio = distributions.Poisson(target).log_prob(target) - distributions.Poisson(output.exp()).log_prob(target)
    close(mean(Poisson().loss(output, target)), 2 * ratio.mean())


def test_poisson_gradient_is_twice_that_of_torchs_loss():
    output, target = draw("poisson", 40)
    output.requires_grad_()
    (ours,) = torch.autograd.grad(mean(Poisson().loss(output, target)), output)
    (torchs,) = torch.autograd.grad(F.poisson_nll_loss(output, target), output)
    close(ours, 2 * torchs)


def test_poisson_near_a_perfect_fit_is_neither_negative_nor_rounded_away():
    target = torch.arange(1.0, 5001.0).repeat(4)
    shift = torch.logspace(-7, -1, len(target))
    output = target.double().log() + shift.double()
    error = Poisson().error(output.float(), target)
    assert (error >= 0).all()
    exact = 2 * target.double() * (shift.double().expm1() - shift.double())
    large = shift > 1e-2
    close(error[large], exact[large].float(), rtol=2e-3, atol=0)


def test_poisson_labels_are_counts():
    with pytest.raises(ValueError, match="labels of a poisson task should be counts, at least 0: found -1 to 3"):
        Poisson().loss(torch.zeros(2), torch.tensor([3.0, -1.0]))


def test_vector_poisson():
    vector = VECTORS["uw.poisson"]
    expected = vector["expected"]
    log_rate, counts = float64(vector["inputs"]["mu"]).log(), float64(vector["inputs"]["y"])
    vector_close(Poisson().error(log_rate, counts), expected["unit_deviance"], vector)
    deviance = mean(Poisson().loss(log_rate, counts)).item()
    vector_close(math.exp(Poisson().optimum(deviance)), expected["phi"], vector)
    vector_close(Poisson().optimum(deviance), expected["s_opt"], vector)
