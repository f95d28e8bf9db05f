import math
from dataclasses import dataclass

import pytest
import torch

from lightning_uncertainty.likelihoods import (
    AsGeneric,
    Categorical,
    CategoricalHalf,
    Elementwise,
    HeteroscedasticGaussian,
    HeteroscedasticLaplace,
    L1Kendall,
    Laplace,
    Likelihood,
    as_likelihood,
    optimal_log_variance,
)
from tests._numbers import float64
from tests.likelihoods._likelihoods import NAN, WEIGHED, close, draw, make, term


@pytest.mark.parametrize("name", WEIGHED)
@pytest.mark.parametrize("loss", [1e-3, 0.37, 250.0])
def test_optimum_is_the_stationary_point_and_a_minimum(name, loss):
    likelihood = make(name)
    s = float64(likelihood.optimum(loss)).requires_grad_()
    (slope,) = torch.autograd.grad(term(likelihood, loss, s), s, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, s)
    close(slope.detach(), 0.0, rtol=0, atol=1e-9)
    assert curvature > 0


@pytest.mark.parametrize("name", WEIGHED)
def test_weight_at_the_optimum_does_not_depend_on_the_factor(name):
    likelihood = make(name)
    loss = float64(0.37).requires_grad_()
    s = float64(likelihood.optimum(0.37))
    (weight,) = torch.autograd.grad(term(likelihood, loss, s), loss)
    close(weight, likelihood.penalty / (likelihood.exponent * 0.37))


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("gaussian", lambda mse: mse),
        ("laplace", lambda mae: 2 * mae**2),
        ("l1_kendall", lambda mae: mae),
        ("categorical", lambda ce: 2 * ce),
        ("categorical_half", lambda ce: ce),
        ("bernoulli", lambda bce: 2 * bce),
        ("poisson", lambda deviance: deviance),
        ("generic", lambda loss: loss),
    ],
)
def test_what_the_variance_means(name, variance):
    close(math.exp(make(name).optimum(0.7)), variance(0.7))


def test_literal_forms_weigh_as_their_docstrings_say():
    def weight(likelihood, loss):
        return likelihood.factor * math.exp(-likelihood.exponent * likelihood.optimum(loss))

    for loss in (0.2, 3.0):
        close(weight(L1Kendall(), loss), 1 / (2 * loss))
        close(weight(Laplace(), loss), 1 / loss)
        close(weight(Categorical(), loss), 1 / (2 * loss))
        close(weight(CategoricalHalf(), loss), 1 / (2 * loss))
        close(Categorical().optimum(loss) - CategoricalHalf().optimum(loss), math.log(2))
        close(math.exp(L1Kendall().optimum(loss)), loss)


def test_optimal_log_variance_is_elementwise_and_floors_a_zero_loss():
    kinds = [make(name) for name in WEIGHED]
    losses = torch.linspace(0.1, 5.0, len(kinds))
    a, log_ratio = (torch.tensor([getattr(kind, what) for kind in kinds]) for what in ("exponent", "log_ratio"))
    wanted = [kind.optimum(x) for kind, x in zip(kinds, losses.tolist(), strict=True)]
    close(optimal_log_variance(losses, a, log_ratio), wanted)
    assert optimal_log_variance(torch.zeros(len(kinds)), a, log_ratio).isfinite().all()


@pytest.mark.parametrize("name", WEIGHED)
def test_compiles_in_one_graph(name):
    torch._dynamo.reset()
    likelihood = make(name)
    output, target = draw(name, 4, 3)
    mask = torch.tensor([True, False, True, True])
    compiled = torch.compile(likelihood.loss, fullgraph=True, backend="eager")
    close(compiled(output, target, mask), likelihood.loss(output, target, mask))


@pytest.mark.parametrize(
    ("name", "inverse_link"),
    [("gaussian", lambda f: f), ("laplace", lambda f: f), ("bernoulli", torch.sigmoid), ("poisson", torch.exp)],
)
def test_observed_gives_predictions_in_label_space(name, inverse_link):
    output, target = draw(name, 4, 3)
    target[0, 1] = NAN
    mask = torch.tensor([True, True, False, True])
    prediction, label = make(name).observed(output, target, mask)
    there = ~target.isnan() & mask[:, None]
    close(prediction, inverse_link(output[there]))
    close(label, target[there])


HEADS = {"heteroscedastic_gaussian": HeteroscedasticGaussian(), "heteroscedastic_laplace": HeteroscedasticLaplace()}


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 3, 4)])
@pytest.mark.parametrize("name", [*WEIGHED, *HEADS, "as_generic"])
def test_what_is_aligned_is_what_is_observed_and_where(name, shape):
    likelihood = AsGeneric(HeteroscedasticGaussian()) if name == "as_generic" else HEADS.get(name) or make(name)
    output, target = draw(name, *shape)
    if likelihood.normalised or name == "as_generic":
        output = torch.stack([output, output], 1).flatten(1, 2) if len(shape) > 1 else torch.stack([output, output], 1)
    mask = torch.rand(shape) > 0.3
    prediction, label, there = likelihood.aligned(output, target, mask)
    assert label.shape == there.shape
    classes = name.startswith("categorical")
    assert prediction.shape[:1] + prediction.shape[1 + classes :] == label.shape
    flat, labels = likelihood.observed(output, target, mask)
    close((prediction.movedim(1, -1) if classes else prediction)[there], flat)
    close(label[there], labels)
    alone, nothing, nowhere = likelihood.aligned(output, None)
    close(alone, prediction)
    assert (nothing.shape, nothing.dtype) == (label.shape, label.dtype)
    assert not nowhere.any()


def test_likelihood_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Likelihood()


@pytest.mark.parametrize(
    ("likelihood", "density"),
    [
        ("gaussian", lambda f, s: torch.distributions.Normal(f, (s / 2).exp())),
        ("laplace", lambda f, s: torch.distributions.Laplace(f, (s / 2).exp() / 2**0.5)),
        ("l1_kendall", lambda f, s: torch.distributions.Laplace(f, s.exp())),
        ("poisson", lambda f, s: torch.distributions.Poisson(f.exp())),
    ],
)
def test_predicted_moments_are_those_of_the_density(likelihood, density):
    outputs, s, one = torch.randn(1, 5), torch.tensor(0.8), torch.tensor(1.0)
    truth = density(outputs[0], s)
    dispersion = s.exp() if likelihood == "poisson" else one
    found = as_likelihood(likelihood).predicted(outputs, s, one)
    torch.testing.assert_close(found.mean, truth.mean)
    torch.testing.assert_close(found.aleatoric.square(), dispersion * truth.variance)
    assert (found.epistemic == 0).all()
    doubled = as_likelihood(likelihood).predicted(outputs, s, 2 * one)
    torch.testing.assert_close(doubled.total, 2 * found.total)


def test_predicted_events_and_means_alone():
    outputs, unknown = torch.randn(3, 4, 2), torch.tensor(torch.nan)
    event = as_likelihood("bernoulli").predicted(outputs, unknown, torch.tensor(0.5))
    torch.testing.assert_close(event.mean, (2 * outputs).sigmoid().mean(0))
    torch.testing.assert_close(event.total, torch.distributions.Bernoulli(event.mean).entropy())
    for likelihood, s in (("generic", torch.tensor(0.0)), ("gaussian", unknown)):
        found = as_likelihood(likelihood).predicted(outputs, s, torch.tensor(1.0))
        assert found.aleatoric.isnan().all()
        assert found.total.isnan().all()
        torch.testing.assert_close(found.epistemic, outputs.std(0, correction=0))


# -- likelihoods of one's own ------------------------------------------------------------------------------------------


def own(**numbers):
    return dataclass(frozen=True)(type("Own", (Elementwise,), {"error": lambda self, a, b: (a - b).abs(), **numbers}))()


def test_one_of_ones_own_that_says_what_it_is_may_be_registered():
    likelihood = own(factor=1.0, meaning="MAE [label]")
    assert as_likelihood(likelihood) is likelihood
    total, count = likelihood.loss(torch.tensor([1.0, 2.0]), torch.tensor([3.0, torch.nan]))
    assert (total.item(), count.item()) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        ({"factor": 1.0}, r"found no meaning of Own; write what e\^\(s/2\) is"),
        ({"meaning": "x"}, r"the factor of Own .* should be a positive number: found None"),
        (
            {"meaning": "x", "factor": 1.0, "exponent": 0},
            "exponent of Own .* positive number: found 0; a loss that",
        ),
        ({"meaning": "x", "factor": 1.0, "penalty": -1.0}, "the penalty of Own .* positive number: found -1"),
        (
            {"meaning": "x", "factor": 1.0, "normalised": True},
            "exponent of Own .* should be 0, as it is normalised",
        ),
    ],
)
def test_one_that_does_not_is_told_when_tasks_are_registered(numbers, found):
    with pytest.raises(ValueError, match=found):
        as_likelihood(own(**numbers))
