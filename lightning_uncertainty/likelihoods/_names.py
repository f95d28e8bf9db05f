"""Likelihoods by name."""

from __future__ import annotations

from typing import Any

from lightning_uncertainty.likelihoods._base import Likelihood, check_likelihood
from lightning_uncertainty.likelihoods.bernoulli import Bernoulli
from lightning_uncertainty.likelihoods.categorical import Categorical, CategoricalHalf
from lightning_uncertainty.likelihoods.constant import Constant
from lightning_uncertainty.likelihoods.gaussian import Gaussian
from lightning_uncertainty.likelihoods.generic import Generic
from lightning_uncertainty.likelihoods.laplace import L1Kendall, Laplace
from lightning_uncertainty.likelihoods.poisson import Poisson

__all__ = ["LIKELIHOODS", "as_likelihood"]

LIKELIHOODS: dict[str, type[Likelihood]] = {
    kind._name: kind
    for kind in (Gaussian, Laplace, L1Kendall, Categorical, CategoricalHalf, Bernoulli, Poisson, Generic, Constant)
}
"""Likelihoods by name."""


def as_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """Return a likelihood given by its name or as itself.

    Raises:
        ValueError: no likelihood has that name, or one of your own does not keep the contract.

    Example:
        >>> as_likelihood("laplace")
        Laplace()
    """
    if isinstance(likelihood, Likelihood):
        check_likelihood(likelihood)
        return likelihood
    if not isinstance(likelihood, str) or likelihood not in LIKELIHOODS:
        given: Any = likelihood
        is_class = isinstance(given, type) and issubclass(given, Likelihood)
        mend = f"; write {given.__name__}(...)" if is_class else ""
        raise ValueError(
            f"a likelihood should be one of {', '.join(LIKELIHOODS)}, or a Likelihood: found {likelihood!r}{mend}"
        )
    return LIKELIHOODS[likelihood]()
