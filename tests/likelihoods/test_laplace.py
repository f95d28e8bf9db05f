import math

import pytest
import torch
from torch import distributions
from torch.nn import functional as F

from lightning_uncertainty.likelihoods import (
    L1Kendall,
    Laplace,
)
from tests._numbers import float64
from tests.likelihoods._likelihoods import VECTORS, close, draw, mean, term, vector_close


@pytest.mark.parametrize("s", [-1.3, 0.0, 2.2])
def test_laplace_is_the_laplace_likelihood_with_its_standard_deviation(s):
    output, target = draw("laplace", 6, 3)
    density = distributions.Laplace(output, math.exp(s / 2) / math.sqrt(2))
    close(density.stddev.mean(), math.exp(s / 2))
    nll = -density.log_prob(target).mean()
    close(term(Laplace(), mean(Laplace().loss(output, target)), torch.tensor(s)) + 0.5 * math.log(2), nll)


def test_l1_kendall_is_the_absolute_error():
    output, target = draw("l1_kendall", 6, 3)
    close(mean(L1Kendall().loss(output, target)), F.l1_loss(output, target))


def test_vector_laplace():
    vector = VECTORS["uw.laplace"]
    expected = vector["expected"]
    residuals = float64(vector["inputs"]["residuals"])
    mae = mean(Laplace().loss(residuals, torch.zeros_like(residuals))).item()
    s = Laplace().optimum(mae)
    vector_close(mae, expected["mae"], vector)
    vector_close(s, expected["s_logvar"], vector)
    vector_close(math.exp(s / 2), expected["sigma_std"], vector)
    vector_close(Laplace.factor * math.exp(-Laplace.exponent * s), expected["weight_logvar"], vector)
    vector_close(term(Laplace(), mae, float64(s)) + 0.5 * math.log(2), expected["nll"], vector)
    vector_close(math.exp(L1Kendall().optimum(mae)), expected["kendall_literal_sigma2"], vector)
