import math

import pytest
import torch
from torch import distributions

from lightning_uncertainty.likelihoods import (
    Gaussian,
)
from tests._numbers import float64
from tests.likelihoods._likelihoods import VECTORS, close, draw, mean, term, vector_close


@pytest.mark.parametrize("s", [-1.3, 0.0, 2.2])
def test_gaussian_is_the_normal_likelihood(s):
    output, target = draw("gaussian", 6, 3)
    nll = -distributions.Normal(output, math.exp(s / 2)).log_prob(target).mean()
    close(term(Gaussian(), mean(Gaussian().loss(output, target)), torch.tensor(s)) + 0.5 * math.log(2 * math.pi), nll)


@pytest.mark.parametrize("key", ["uw.gaussian.s0", "uw.gaussian.s_half", "uw.gaussian.opt"])
def test_vector_gaussian(key):
    vector = VECTORS[key]
    loss, s = (float64(vector["inputs"][what]).requires_grad_() for what in ("loss", "s"))
    terms = term(Gaussian(), loss, s)
    weight, grad_s = torch.autograd.grad(terms.sum(), (loss, s))
    vector_close(terms.detach(), vector["expected"]["term"], vector)
    vector_close(weight, vector["expected"]["weight"], vector)
    vector_close(grad_s, vector["expected"]["grad_s"], vector)


def test_vector_negative_loss():
    vector = VECTORS["uw.gaussian.negative_loss"]
    terms = [term(Gaussian(), x, float64(Gaussian().optimum(x))).item() for x in vector["inputs"]["loss"]]
    vector_close(terms, vector["expected"]["optimal_term"], vector)


def test_vector_reductions():
    vector = VECTORS["uw.gaussian.reductions"]
    residuals = float64(vector["inputs"]["residuals"])
    loss = mean(Gaussian().loss(residuals, torch.zeros_like(residuals))).item()
    vector_close(loss, vector["expected"]["mse"], vector)
    for row in vector["expected"]["rows"].values():  # other reductions scale σ; ours is the corrected one
        vector_close(math.exp(Gaussian().optimum(row["loss"]) / 2), row["sigma_naive"], vector)
        vector_close(math.exp(Gaussian().optimum(loss) / 2), row["sigma_corrected"], vector)


def test_vector_masked_ranks():
    vector = VECTORS["uw.gaussian.masked_ranks"]
    ranks = [float64(vector["inputs"][rank]) for rank in ("rank0_residuals", "rank1_residuals")]
    pairs = [Gaussian().loss(residuals, torch.zeros_like(residuals)) for residuals in ranks]
    total, count = (sum(values) for values in zip(*pairs, strict=True))
    vector_close(total / count, vector["expected"]["global_mean"], vector)
    vector_close(sum(mean(pair) for pair in pairs) / 2, vector["expected"]["mean_of_means"], vector)
    vector_close(math.exp(Gaussian().optimum((total / count).item()) / 2), vector["expected"]["sigma_global"], vector)
