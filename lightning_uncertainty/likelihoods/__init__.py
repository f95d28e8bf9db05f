r"""Likelihoods: how a task's raw loss becomes a term in its log-variance `s = log σ²`.

Every likelihood here has the same form, with three numbers of its own,

.. math::  J(L, s) = c\, e^{-a s} L + r\, s,

where `L` is the mean residual loss over the *observed scalars* of the batch. The minimum over `s` and the effective
weight there, which is `r / (a L)` whatever `c` is, are

.. math::  s^* = \log(a c L / r) / a, \qquad  c\, e^{-a s^*} = r / (a L).

So `c` decides only what `e^s` means, not how the tasks are balanced at the optimum.

A likelihood whose head gives a scale for every element is normalised already: its `c, a, r` are 1, 0, 0, so that
`J = L`, which may be negative, and there is no second scale to learn (see the heteroscedastic ones). So are those of
`Constant`, a term that is no task.

Source: Kendall, Gal & Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018, Eq. 5 to 10.
"""

from lightning_uncertainty.likelihoods._base import Likelihood, optimal_log_variance
from lightning_uncertainty.likelihoods._elementwise import Elementwise
from lightning_uncertainty.likelihoods._labels import Counted, align, masked_sum
from lightning_uncertainty.likelihoods._names import LIKELIHOODS, as_likelihood
from lightning_uncertainty.likelihoods.as_generic import AsGeneric
from lightning_uncertainty.likelihoods.bernoulli import Bernoulli
from lightning_uncertainty.likelihoods.categorical import Categorical, CategoricalHalf
from lightning_uncertainty.likelihoods.constant import Constant
from lightning_uncertainty.likelihoods.densities import gaussian_nll, laplace_nll, noisy_log_probabilities
from lightning_uncertainty.likelihoods.gaussian import Gaussian
from lightning_uncertainty.likelihoods.generic import Generic
from lightning_uncertainty.likelihoods.heteroscedastic import (
    HeteroscedasticCategorical,
    HeteroscedasticGaussian,
    HeteroscedasticLaplace,
)
from lightning_uncertainty.likelihoods.laplace import L1Kendall, Laplace
from lightning_uncertainty.likelihoods.poisson import Poisson
from lightning_uncertainty.likelihoods.prediction import Prediction, binary, classification, regression

__all__ = [
    "LIKELIHOODS",
    "AsGeneric",
    "Bernoulli",
    "Categorical",
    "CategoricalHalf",
    "Constant",
    "Counted",
    "Elementwise",
    "Gaussian",
    "Generic",
    "HeteroscedasticCategorical",
    "HeteroscedasticGaussian",
    "HeteroscedasticLaplace",
    "L1Kendall",
    "Laplace",
    "Likelihood",
    "Poisson",
    "Prediction",
    "align",
    "as_likelihood",
    "binary",
    "classification",
    "gaussian_nll",
    "laplace_nll",
    "masked_sum",
    "noisy_log_probabilities",
    "optimal_log_variance",
    "regression",
]
