"""Likelihoods, outputs and labels of each, and what is close."""

import json
from pathlib import Path

import torch
from torch.nn import functional as F

from lightning_uncertainty.likelihoods import (
    LIKELIHOODS,
    Generic,
    as_likelihood,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))
NAN = float("nan")
WEIGHED = [name for name in LIKELIHOODS if name != "constant"]
ELEMENTWISE = [name for name in WEIGHED if not name.startswith("categorical")]
CATEGORICAL = ["categorical", "categorical_half"]


def make(name):
    if name == "generic":
        return Generic(lambda output, target: F.huber_loss(output, target, reduction="none"))
    return as_likelihood(name)


def draw(name, *shape, classes=4):
    """Outputs and labels of a task: [B, ...] both, or logits [B, C, ...]."""
    generator = torch.Generator().manual_seed(7)
    output = torch.randn(shape, generator=generator)
    if name in CATEGORICAL:
        return (
            torch.randn(shape[0], classes, *shape[1:], generator=generator),
            torch.randint(classes, shape, generator=generator),
        )
    if name == "bernoulli":
        return output, torch.randint(2, shape, generator=generator).float()
    if name == "poisson":
        return output, torch.randint(6, shape, generator=generator).float()
    return output, torch.randn(shape, generator=generator)


def mean(pair):
    total, count = pair
    return total / count


def term(likelihood, loss, s):
    """J(L, s), straight from the module's formula."""
    return likelihood.factor * torch.exp(-likelihood.exponent * s) * loss + likelihood.penalty * s


def close(actual, expected, **kwargs):
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), check_dtype=False, **kwargs)


def vector_close(actual, expected, vector):
    actual, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (actual, expected))
    close(actual, expected, rtol=vector["rtol"], atol=vector["atol"])


def with_missing(name, target, missing):
    return target.masked_fill(missing, -100 if name in CATEGORICAL else NAN)
