import math

import pytest
import torch
from torch.nn import functional as F

from lightning_uncertainty.likelihoods import (
    Bernoulli,
    Categorical,
)
from tests._numbers import float64
from tests.likelihoods._likelihoods import NAN, VECTORS, close, draw, mean, term, vector_close


@pytest.mark.parametrize("pos_weight", [0.2, 1.0, 7.0])
def test_bernoulli_is_torchs_binary_cross_entropy(pos_weight):
    output, target = draw("bernoulli", 6, 3)
    target[0] = torch.tensor([0.25, 0.5, 0.9])  # soft labels
    expected = F.binary_cross_entropy_with_logits(output, target, pos_weight=torch.tensor(pos_weight))
    close(mean(Bernoulli(pos_weight=pos_weight).loss(output, target)), expected)


@pytest.mark.parametrize("pos_weight", [1.0, 3.0])
def test_bernoulli_of_a_large_logit_is_finite(pos_weight):
    output = torch.tensor([-1000.0, 1000.0], requires_grad=True)
    total, _ = Bernoulli(pos_weight=pos_weight).loss(output, torch.tensor([1.0, 0.0]))
    total.backward()
    close(total.detach(), 1000.0 * (1 + pos_weight))
    close(output.grad, [-pos_weight, 1.0])


def test_bernoulli_is_categorical_of_two_classes():
    output, target = draw("bernoulli", 6)
    logits = torch.stack([torch.zeros(6), output], 1)
    close(mean(Bernoulli().loss(output, target)), mean(Categorical().loss(logits, target.long())))
    for what in ("factor", "exponent", "penalty"):
        assert getattr(Bernoulli, what) == getattr(Categorical, what)


def test_booleans_are_bernoulli_labels():
    output, target = draw("bernoulli", 5)
    close(Bernoulli().loss(output, target > 0), Bernoulli().loss(output, target))


def test_observed_gives_bernoulli_labels_as_integers():
    label = Bernoulli().observed(torch.zeros(3), torch.tensor([0.0, NAN, 1.0]))[1]
    assert label.dtype is torch.int64
    assert label.tolist() == [0, 1]


@pytest.mark.parametrize("label", [-0.1, 1.1, 255.0])
def test_bernoulli_labels_out_of_range(label):
    with pytest.raises(ValueError, match=r"labels of a bernoulli task should lie in \[0, 1\]: found"):
        Bernoulli().loss(torch.zeros(2), torch.tensor([0.5, label]))


@pytest.mark.parametrize("pos_weight", [0.0, -1.0, NAN])
def test_pos_weight_is_positive(pos_weight):
    with pytest.raises(ValueError, match="pos_weight should be positive"):
        Bernoulli(pos_weight=pos_weight)


def test_vector_bernoulli():
    vector = VECTORS["uw.bernoulli"]
    expected = vector["expected"]
    bce = mean(Bernoulli().loss(float64(vector["inputs"]["logits"]), float64(vector["inputs"]["targets"]))).item()
    vector_close(bce, expected["bce_mean"], vector)
    vector_close(Bernoulli().optimum(bce), expected["s_opt"], vector)
    vector_close(Bernoulli.factor * math.exp(-Bernoulli().optimum(bce)), expected["weight_opt"], vector)
    vector_close(term(Bernoulli(), bce, float64(0.0)), expected["term_at_s0"], vector)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4, 5)])
def test_pos_weight_of_every_channel_is_torchs(shape):
    output, target = draw("bernoulli", *shape)
    weights = torch.tensor([0.5, 1.0, 4.0])
    fitted = weights.reshape(-1, *[1] * (len(shape) - 2))
    expected = F.binary_cross_entropy_with_logits(output, target, pos_weight=fitted)
    for given in (weights, weights.tolist()):
        likelihood = Bernoulli(pos_weight=given)
        assert likelihood == Bernoulli(pos_weight=(0.5, 1.0, 4.0))
        assert hash(likelihood)
        close(mean(likelihood.loss(output, target)), expected)
    assert Bernoulli(pos_weight=torch.tensor(2.0)) == Bernoulli(pos_weight=2.0)


def test_pos_weight_of_other_channels_is_told():
    with pytest.raises(ValueError, match="one number, or one for each of 3 channels: found 2"):
        Bernoulli(pos_weight=(1.0, 2.0)).loss(torch.zeros(4, 3), torch.zeros(4, 3))


@pytest.mark.parametrize("wrong", ["x", [], [1.0, -1.0], math.inf, None, torch.tensor([NAN])])
def test_slips_in_pos_weight_are_told(wrong):
    with pytest.raises(ValueError, match="pos_weight should be positive and finite, one or one a channel: found"):
        Bernoulli(pos_weight=wrong)
