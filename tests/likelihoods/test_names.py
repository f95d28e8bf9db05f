import pytest

from lightning_uncertainty.likelihoods import (
    LIKELIHOODS,
    Gaussian,
    as_likelihood,
)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_names_and_instances(name):
    likelihood = as_likelihood(name)
    assert likelihood.name == name
    assert as_likelihood(likelihood) is likelihood
    assert likelihood == LIKELIHOODS[name]()
    assert hash(likelihood) == hash(LIKELIHOODS[name]())
    assert likelihood.meaning
    with pytest.raises(AttributeError):
        likelihood.extra = 1


def test_a_likelihood_of_ones_own_has_its_class_name():
    class Hinge(Gaussian):
        pass

    assert Hinge().name == "Hinge"
    assert as_likelihood(Hinge()).name == "Hinge"


@pytest.mark.parametrize("wrong", ["gausian", "Gaussian", 3, None, Gaussian])
def test_unknown_likelihoods(wrong):
    with pytest.raises(ValueError, match=r"one of gaussian, laplace, .*, or a Likelihood: found"):
        as_likelihood(wrong)
