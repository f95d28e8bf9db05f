"""Weightings and likelihoods that are tried on a GPU, with options that go other ways there."""

import torch
from torch.nn import functional as F

from lightning_uncertainty.architectures import berhu
from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.likelihoods import (
    AsGeneric,
    Bernoulli,
    Categorical,
    CategoricalHalf,
    Gaussian,
    Generic,
    HeteroscedasticCategorical,
    HeteroscedasticGaussian,
    HeteroscedasticLaplace,
    L1Kendall,
    Laplace,
    Poisson,
)
from lightning_uncertainty.weightings import UncertaintyWeighting
from tests.trainer._weightings import WEIGHTINGS

EVERY = {
    **WEIGHTINGS,
    "within bounds": lambda: UncertaintyWeighting(bounds={"depth": (-1.0, 1.5)}),
    "shared": lambda: UncertaintyWeighting(shared=[["depth"]]),
    "pcgrad": lambda: GradientBalancing("pcgrad"),
    "imtl_g": lambda: GradientBalancing("imtl_g"),
    "heads weighted": lambda: GradientBalancing("mgda", UncertaintyWeighting(), heads="weighted"),
    "on parameters": lambda: GradientBalancing("mgda", on="parameters", every_n_steps=2),
}

LIKELIHOODS = {
    "Gaussian": Gaussian(),
    "Laplace": Laplace(),
    "L1Kendall": L1Kendall(),
    "Poisson": Poisson(),
    "Bernoulli": Bernoulli(pos_weight=2.0, focal=1.5),
    "Categorical": Categorical(class_weights=(1.0, 2.0, 0.5), focal=2.0),
    "CategoricalHalf": CategoricalHalf(),
    "Generic": Generic(lambda output, target: F.huber_loss(output, target, reduction="none")),
    "berhu": Generic(berhu),
    "HeteroscedasticGaussian": HeteroscedasticGaussian(),
    "HeteroscedasticGaussian_beta": HeteroscedasticGaussian(beta=0.5),
    "HeteroscedasticLaplace": HeteroscedasticLaplace(),
    "HeteroscedasticCategorical": HeteroscedasticCategorical(samples=4),
    "AsGeneric": AsGeneric(HeteroscedasticGaussian()),
}
CLASSES = ("Categorical", "CategoricalHalf", "HeteroscedasticCategorical")
TWICE = tuple(name for name in LIKELIHOODS if name.startswith(("Heteroscedastic", "AsGeneric")))  # and a scale for each
OUTPUTS = {name: (3 if name in CLASSES else 1) * (2 if name in TWICE else 1) for name in LIKELIHOODS}


def labels_for(rows: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Labels of every likelihood, of which some are missing."""
    rng = torch.Generator().manual_seed(0)
    labels = {}
    for name in LIKELIHOODS:
        if name in CLASSES:
            labels[name] = torch.randint(3, (rows,), generator=rng)
            labels[name][::4] = -100
            continue
        labels[name] = torch.rand(rows, 1, generator=rng, dtype=dtype)
        if name == "Poisson":
            labels[name] = (5 * labels[name]).round()
        labels[name][1::4] = torch.nan
    return labels
