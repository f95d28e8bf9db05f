import math

import pytest
import torch
from pytorch_lightning.utilities import move_data_to_device
from torch.distributions import Bernoulli, Categorical
from torch.utils.data import default_collate

from lightning_uncertainty.likelihoods import Prediction, binary, classification, regression
from tests._numbers import float64

# What an independent float64 implementation gives.
MEANS, VARIANCES = [[1.0, 2.0], [1.2, 1.0], [0.8, 3.0]], [[0.1, 0.5], [0.2, 0.4], [0.3, 0.6]]
REGRESSION = {
    "mean": [1.0, 2.0],
    "aleatoric": [0.20000000000000004, 0.5],
    "epistemic": [0.026666666666666655, 0.6666666666666666],
    "total": [0.22666666666666668, 1.1666666666666665],
}
PROBABILITIES = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3]]
CLASSIFICATION = {
    "mean": [0.39999999999999997, 0.43333333333333335, 0.16666666666666666],
    "aleatoric": 0.8432501291795793,
    "epistemic": 0.18426688559502646,
    "total": 1.0275170147746058,
}


def test_regression_gives_the_roots_of_the_variances():
    prediction = regression(float64(MEANS), float64(VARIANCES))
    assert prediction.mean.tolist() == pytest.approx(REGRESSION["mean"], rel=1e-12)
    for name in ("aleatoric", "epistemic", "total"):
        assert getattr(prediction, name).square().tolist() == pytest.approx(REGRESSION[name], rel=1e-12)


def test_classification_gives_the_entropies():
    prediction = classification(float64(PROBABILITIES).unsqueeze(1))
    assert prediction.mean[0].tolist() == pytest.approx(CLASSIFICATION["mean"], rel=1e-12)
    for name in ("aleatoric", "epistemic", "total"):
        assert getattr(prediction, name).tolist() == pytest.approx([CLASSIFICATION[name]], rel=1e-12)


@pytest.mark.parametrize("variance", [float64(0.3), float64([0.1, 0.2, 0.3]), torch.rand(4, 1, 1).double()])
def test_variances_broadcast(variance):
    means = torch.randn(4, 2, 3).double()
    every = variance.expand(4, 2, 3)
    torch.testing.assert_close(regression(means, variance), regression(means, every.clone()))
    torch.testing.assert_close(regression(means, variance).aleatoric.square(), every.mean(0))


def test_the_total_is_the_spread_of_labels():
    """Labels drawn from the samples' own normals spread as the total says."""
    means, variances = torch.randn(5).double(), torch.rand(5).double()
    labels = means + variances.sqrt() * torch.randn(200_000, 5).double()
    assert regression(means, variances).total.item() == pytest.approx(labels.std().item(), rel=0.01)


@pytest.mark.parametrize("places", [(), (7,)])  # torch.var takes other paths for the two
def test_a_small_spread_of_large_means_is_not_lost(places):
    means = 1e4 + 0.01 * torch.randn(64, *places)
    spread = means.double().std(0, correction=0)
    assert means.dtype is torch.float32
    torch.testing.assert_close(regression(means, torch.zeros(())).epistemic.double(), spread, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        regression(means, torch.zeros(())).mean.double(), means.double().mean(0), rtol=1e-7, atol=0
    )


@pytest.mark.parametrize("samples", [1, 7])
def test_equal_samples_leave_nothing_epistemic(samples):
    probabilities = torch.softmax(torch.randn(3, 5, 4), dim=1).repeat(samples, 1, 1, 1)
    means = 1e4 * torch.randn(3, 2)
    for prediction, mean in [
        (regression(means.repeat(samples, 1, 1), torch.ones(())), means),
        (classification(probabilities), probabilities[0]),
        (binary(probabilities), probabilities[0]),
    ]:
        assert torch.equal(prediction.mean, mean)
        assert (prediction.epistemic == 0).all()
        assert torch.equal(prediction.total, prediction.aleatoric)


@pytest.mark.parametrize("places", [(), (4,), (4, 3)])
def test_classes_are_the_third_dimension(places):
    probabilities = torch.softmax(torch.randn(6, 2, 5, *places).double(), dim=2)
    prediction = classification(probabilities)
    last = probabilities.movedim(2, -1)
    total, aleatoric = Categorical(last.mean(0)).entropy(), Categorical(last).entropy().mean(0)
    expected = Prediction(probabilities.mean(0), aleatoric, total - aleatoric, total)
    torch.testing.assert_close(prediction, expected)


def test_binary_is_per_element():
    probabilities = torch.rand(6, 2, 3, 4).double()
    total, aleatoric = Bernoulli(probabilities.mean(0)).entropy(), Bernoulli(probabilities).entropy().mean(0)
    expected = Prediction(probabilities.mean(0), aleatoric, total - aleatoric, total)
    torch.testing.assert_close(binary(probabilities), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sure", [1e-3, 1e-8, 1e-9, 1e-18, 1e-30, 1e-44, 0.0])
def test_a_sample_that_all_but_excludes_a_class_disagrees_with_one_that_does_not(sure, dtype):
    """In either order; the rest of a probability so small is rounded away when it is taken from the mean."""
    pairs = torch.tensor([[sure, 0.5], [0.5, sure], [sure, 0.999], [sure, sure / 2]], dtype=dtype)
    mean = pairs.double().mean(1)

    def entropy(p):
        return torch.special.entr(p) + torch.special.entr(1 - p)

    expected = entropy(mean) - entropy(pairs.double()).mean(1)
    for found in (binary(pairs.T), classification(torch.stack([pairs.T, 1 - pairs.T], 2))):
        torch.testing.assert_close(found.epistemic.double(), expected.clamp_min(0), rtol=1e-5, atol=1e-7)
        assert found.total.isfinite().all()


def test_sure_samples_that_differ_are_all_epistemic():
    opposed = torch.eye(3).unsqueeze(1)
    prediction = classification(opposed)
    assert prediction.aleatoric.tolist() == [0.0]
    assert prediction.epistemic.tolist() == pytest.approx([math.log(3)])
    assert all((part == 0).all() for part in classification(opposed[:1].repeat(4, 1, 1))[1:])


def test_small_disagreement_is_not_lost():
    logits = torch.randn(1, 500, 8) + 1e-4 * torch.randn(10, 500, 8)
    probabilities = torch.softmax(logits, dim=2)
    exact = classification(torch.softmax(logits.double(), dim=2)).epistemic
    epistemic = classification(probabilities).epistemic
    torch.testing.assert_close(epistemic.double(), exact, rtol=0, atol=0.02 * exact.mean().item())


def test_rounding_makes_no_information_negative():
    probabilities = torch.softmax(torch.randn(1, 5000, 8), dim=2) * (1 + 1e-7 * torch.randn(10, 5000, 8))
    assert (classification(probabilities).epistemic >= 0).all()
    assert (binary(probabilities).epistemic >= 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_samples_are_split_in_float32(dtype):
    samples = torch.softmax(torch.randn(6, 2, 5), dim=2).to(dtype)
    for halved, wide in [
        (regression(samples, samples), regression(samples.float(), samples.float())),
        (classification(samples), classification(samples.float())),
        (binary(samples), binary(samples.float())),
    ]:
        torch.testing.assert_close(halved, wide, rtol=0, atol=0)


def test_lightning_moves_and_torch_collates_a_prediction():
    prediction = regression(torch.randn(4, 3), torch.ones(()))
    moved = move_data_to_device({"depth": prediction}, torch.device("meta"))["depth"]
    assert isinstance(moved, Prediction)
    assert {part.device.type for part in moved} == {"meta"}
    collated = default_collate([prediction, prediction])
    assert isinstance(collated, Prediction)
    assert [part.shape for part in collated] == [(2, 3)] * 4


@pytest.mark.parametrize(
    ("split", "shape"),
    [
        (lambda samples: regression(samples, torch.ones(())), ()),
        (lambda samples: regression(samples, torch.ones(())), (0, 3)),
        (classification, (4, 3)),
        (classification, (0, 2, 3)),
        (binary, ()),
        (binary, (0, 3)),
    ],
)
def test_samples_are_needed(split, shape):
    with pytest.raises(ValueError, match=r"should be \[S, .*\] with one sample at least: found \["):
        split(torch.ones(shape))
