import math

import pytest
import torch

from lightning_uncertainty.likelihoods import (
    Bernoulli,
    Categorical,
    CategoricalHalf,
)
from tests.likelihoods._likelihoods import NAN, close, draw, mean


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 5.0])
def test_focal_loss_of_classes(exponent):
    """-(1 - p)^γ log p of the label's class, written out; weights of classes and missing labels as ever."""
    output, target = draw("categorical", 40, classes=3)
    output, weights = 3 * output.double(), torch.tensor([0.3, 0.7, 0.9], dtype=torch.float64)
    p = output.softmax(1)[torch.arange(40), target]
    expected = -((1 - p) ** exponent) * p.log()
    target[::4] = -100
    seen = target != -100
    total, count = Categorical(focal=exponent).loss(output, target)
    close(total, expected[seen].sum())
    assert count == 30
    own = weights[target[seen]]
    close(
        mean(Categorical(class_weights=weights.tolist(), focal=exponent).loss(output, target)),
        (own * expected[seen]).sum() / own.sum(),
        rtol=1e-6,
        atol=0,
    )
    close(total, CategoricalHalf(focal=exponent).loss(output, target)[0])


@pytest.mark.parametrize("exponent", [0.5, 2.0])
@pytest.mark.parametrize("pos_weight", [1.0, 3.0])
def test_focal_loss_of_logits(exponent, pos_weight):
    output, target = draw("bernoulli", 8, 3)
    output, target = 3 * output.double(), target.double()
    target[0] = torch.tensor([0.25, 0.5, 0.9])
    p = output.sigmoid()
    wrong = target * (1 - p) + (1 - target) * p
    expected = -(wrong**exponent) * (pos_weight * target * p.log() + (1 - target) * (1 - p).log())
    target[1, 0] = NAN
    close(mean(Bernoulli(pos_weight, exponent).loss(output, target)), expected[~target.isnan()].mean())


def test_focal_loss_of_logits_is_that_of_two_classes():
    output, target = draw("bernoulli", 6)
    logits = torch.stack([torch.zeros(6), output], 1)
    close(mean(Bernoulli(focal=2.0).loss(output, target)), mean(Categorical(focal=2.0).loss(logits, target.long())))


@pytest.mark.parametrize("off", [None, 0, 0.0])
def test_focal_loss_that_is_off_is_cross_entropy(off):
    for kind, name, shape in ((Categorical, "categorical", (6,)), (Bernoulli, "bernoulli", (6,))):
        output, target = draw(name, *shape)
        assert torch.equal(kind(focal=off).loss(output, target)[0], kind().loss(output, target)[0])
        assert kind(focal=off).meaning == kind.meaning != kind(focal=1.0).meaning


@pytest.mark.parametrize("exponent", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("logit", [-200.0, 0.0, 200.0])
def test_focal_loss_and_its_gradient_are_finite(exponent, logit):
    """Where the label's class is certain, too, and the gradient of a root infinite."""
    one = torch.tensor([logit], requires_grad=True)
    two = torch.tensor([[0.0, logit]], requires_grad=True)
    pairs = [(Bernoulli(focal=exponent).loss(one, torch.ones(1)), one)]
    pairs.append((Categorical(focal=exponent).loss(two, torch.tensor([1])), two))
    for (total, _), leaf in pairs:
        total.backward()
        assert total.isfinite()
        assert leaf.grad.isfinite().all()
        close(total.detach(), max(-logit, 0.0) if logit else 0.5**exponent * math.log(2))


@pytest.mark.parametrize("exponent", [-0.1, math.inf, NAN])
@pytest.mark.parametrize("kind", [Categorical, CategoricalHalf, Bernoulli])
def test_focal_exponents_that_make_no_sense(kind, exponent):
    with pytest.raises(ValueError, match="focal should be an exponent, finite and at least 0: found"):
        kind(focal=exponent)
