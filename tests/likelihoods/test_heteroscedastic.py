import math
from dataclasses import replace

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import distributions, nn
from torch.nn import functional as F

from lightning_uncertainty import MultiTaskMixin, Task
from lightning_uncertainty.likelihoods import (
    AsGeneric,
    Categorical,
    Gaussian,
    HeteroscedasticCategorical,
    HeteroscedasticGaussian,
    HeteroscedasticLaplace,
    gaussian_nll,
    laplace_nll,
    noisy_log_probabilities,
)
from lightning_uncertainty.tasks import HeteroscedasticHead
from tests._numbers import float64

REGRESSIONS = [HeteroscedasticGaussian(), HeteroscedasticGaussian(beta=0.5), HeteroscedasticLaplace()]
KINDS = [*REGRESSIONS, HeteroscedasticCategorical()]
NAN = float("nan")
MEAN, TARGET, LOG = [0.0, 1.0, -1.0], [1.0, 1.5, 2.0], [0.0, -1.0, 1.0]  # of the numbers below


def close(actual, expected, **tolerances):
    torch.testing.assert_close(torch.as_tensor(actual, dtype=torch.float64), float64(expected), **tolerances)


def output_of(mean, log_variance):
    return torch.cat([mean, log_variance], 1)


def mean_loss(likelihood, *args):
    total, count = likelihood.loss(*args)
    return total / count


def no_noise(classes, *shape):
    return torch.full((shape[0], classes, *shape[1:]), -60.0)


# -- formulas ----------------------------------------------------------------------------------------------------------


def test_gaussian_numbers():
    mean, s = float64(MEAN).requires_grad_(), float64(LOG).requires_grad_()
    elements = gaussian_nll(mean, s, float64(TARGET))
    close(elements.detach(), [0.5, -0.16021477144261936, 2.1554574852714907])
    elements.mean().backward()
    close(mean.grad, [-0.3333333333333333, -0.45304697140984085, -0.36787944117144233])
    close(s.grad, [0.0, 0.053404923814206445, -0.38515249509049687])


def test_laplace_numbers_are_given_by_the_log_of_the_scale():
    log_variance = 2 * float64(LOG) + math.log(2)  # σ = √2 b
    close(log_variance.div(2).exp(), [1.4142135623730951, 0.520260095022889, 3.844231028159117])
    close(laplace_nll(float64(MEAN), log_variance, float64(TARGET)), [1.0, 0.35914091422952255, 2.103638323514327])


@pytest.mark.parametrize(
    ("beta", "elements", "of_mean", "of_log_variance"),
    [
        (
            0.5,
            [0.5, -0.0971751710188007, 3.553748604056915],
            [-1.0, -0.8243606353500641, -1.8195919791379003],
            [0.0, 0.09717517101880069, -1.9050273333567866],
        ),
        (
            1.0,
            [0.5, -0.05893972058572117, 5.859140914229523],
            [-1.0, -0.5, -3.0],  # that of half the squared error
            [0.0, 0.05893972058572117, -3.1408590857704786],
        ),
    ],
)
def test_beta_numbers(beta, elements, of_mean, of_log_variance):
    mean, s = float64(MEAN).requires_grad_(), float64(LOG).requires_grad_()
    found = gaussian_nll(mean, s, float64(TARGET), beta)
    close(found.detach(), elements)
    found.sum().backward()
    close(mean.grad, of_mean)
    close(s.grad, of_log_variance)


def test_noisy_numbers_are_the_log_of_the_mean_probability():
    logits, std = float64([[1.0, 0.0, -1.0]]), float64([[0.5, 1.0, 0.2]])
    noise = float64([[0.0, 0.0, 0.0], [1.0, -1.0, 0.5], [-1.0, 1.0, -0.5], [0.3, 0.3, 0.3]])[:, None]
    found = noisy_log_probabilities(logits, 2 * std.log(), noise)
    close(found[0, 0], -0.46465668586297193)
    close(found[0].exp(), [0.628350789872898, 0.29216196972444786, 0.07948724040265412])


@pytest.mark.parametrize("shape", [(6, 3), (4, 2, 5, 5)])
def test_gaussian_is_that_of_torch(shape):
    mean, s, target = torch.randn(shape), torch.randn(shape), torch.randn(shape)
    found = mean_loss(HeteroscedasticGaussian(), output_of(mean, s), target)
    torch.testing.assert_close(found, nn.GaussianNLLLoss()(mean, target, s.exp()))
    density = distributions.Normal(mean, s.div(2).exp())
    torch.testing.assert_close(found + 0.5 * math.log(2 * math.pi), -density.log_prob(target).mean())


def test_laplace_is_the_density_of_that_standard_deviation():
    mean, s, target = torch.randn(6, 3), torch.randn(6, 3), torch.randn(6, 3)
    density = distributions.Laplace(mean, s.div(2).exp() / math.sqrt(2))
    torch.testing.assert_close(density.stddev, s.div(2).exp())
    found = mean_loss(HeteroscedasticLaplace(), output_of(mean, s), target)
    torch.testing.assert_close(found + math.log(2), -density.log_prob(target).mean())


@pytest.mark.parametrize("shape", [(8,), (4, 5, 5)])
def test_categorical_without_noise_is_the_cross_entropy(shape):
    logits = torch.randn(shape[0], 3, *shape[1:])
    label = torch.randint(3, shape)
    found = mean_loss(HeteroscedasticCategorical(), output_of(logits, no_noise(3, *shape)), label)
    torch.testing.assert_close(found, F.cross_entropy(logits, label))


def test_categorical_averages_probabilities_over_many_draws():
    torch.manual_seed(0)
    logits, s = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.5]])
    found = mean_loss(HeteroscedasticCategorical(samples=40_000), output_of(logits, s), torch.tensor([0]))
    spread = math.sqrt(math.exp(1.0) + math.exp(0.5))  # of f0 - f1, which is normal: a sum over a grid is the oracle
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-grid.square() / 2)
    wanted = -math.log((torch.sigmoid(1.0 + spread * grid) * density).sum() / density.sum())
    assert found.item() == pytest.approx(wanted, abs=0.01)


def test_categorical_draws_anew_and_follows_the_seed():
    output, label = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    likelihood = HeteroscedasticCategorical()
    first, second = mean_loss(likelihood, output, label), mean_loss(likelihood, output, label)
    assert first != second
    torch.manual_seed(5)
    third = mean_loss(likelihood, output, label)
    torch.manual_seed(5)
    assert mean_loss(likelihood, output, label) == third


def test_categorical_takes_weights_and_focus_as_the_plain_one():
    logits, label = torch.randn(8, 3), torch.randint(3, (8,))
    options = {"class_weights": (1.0, 2.0, 0.5), "focal": 2.0}
    noisy, plain = HeteroscedasticCategorical(**options), Categorical(**options)
    torch.testing.assert_close(noisy.loss(output_of(logits, no_noise(3, 8)), label), plain.loss(logits, label))


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", REGRESSIONS)
def test_missing_labels_count_nothing_and_have_no_gradient(likelihood):
    output = torch.randn(6, 4, requires_grad=True)
    target = torch.randn(6, 2)
    target[1, 0] = target[4] = NAN
    mask = torch.tensor([True, True, False, True, True, True])
    total, count = likelihood.loss(output, target, mask)
    assert count == 7
    total.backward()
    seen = mask[:, None] & ~target.isnan()
    assert output.grad[:, :2].ne(0).equal(seen)
    assert output.grad[:, 2:].ne(0).equal(seen)
    alone = [likelihood.loss(output[i : i + 1], target[i : i + 1])[0] for i in (0, 1, 3, 5)]
    torch.testing.assert_close(total, sum(alone))


def test_ignored_classes_count_nothing_and_have_no_gradient():
    output = torch.randn(4, 6, requires_grad=True)
    total, count = HeteroscedasticCategorical(ignore_index=255).loss(output, torch.tensor([0, 255, 2, 1]))
    assert count == 3
    total.backward()
    assert output.grad.any(1).tolist() == [True, False, True, True]


@pytest.mark.parametrize("likelihood", REGRESSIONS)
def test_a_single_channel_may_be_left_out_of_labels(likelihood):
    output, target = torch.randn(3, 2, 4, 4), torch.randn(3, 4, 4)
    torch.testing.assert_close(likelihood.loss(output, target), likelihood.loss(output, target[:, None]))
    prediction, label = likelihood.observed(output, target)
    torch.testing.assert_close(prediction, output[:, 0].flatten())
    torch.testing.assert_close(label, target.flatten())


@pytest.mark.parametrize("likelihood", REGRESSIONS)
def test_metrics_are_given_observed_means(likelihood):
    output, target = torch.randn(3, 4), torch.tensor([[1.0, NAN], [2.0, 3.0], [NAN, NAN]])
    prediction, label = likelihood.observed(output, target)
    assert prediction.tolist() == [output[0, 0], output[1, 0], output[1, 1]]
    assert label.tolist() == [1.0, 2.0, 3.0]


def test_metrics_are_given_mean_probabilities_of_observed_labels():
    logits = torch.randn(3, 4)
    output = output_of(logits, no_noise(4, 3))
    prediction, label = HeteroscedasticCategorical().observed(output, torch.tensor([3, -100, 0]))
    torch.testing.assert_close(prediction, logits.softmax(1)[[0, 2]])
    assert label.tolist() == [3, 0]
    noisy = output_of(logits, torch.full((3, 4), 6.0))
    prediction, _ = HeteroscedasticCategorical(samples=100).observed(noisy, torch.tensor([0, 1, 2]))
    assert (prediction.amax(1) < 0.6).all()
    torch.testing.assert_close(prediction.sum(1), torch.ones(3))


@pytest.mark.parametrize("likelihood", KINDS)
@pytest.mark.parametrize("shape", [(4, 3), (4, 0), (4,)])
def test_an_odd_number_of_channels_is_refused(likelihood, shape):
    with pytest.raises(ValueError, match=r"should have 2C channels.*found shape \[4"):
        likelihood.loss(torch.zeros(shape), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("likelihood", REGRESSIONS)
def test_labels_of_another_shape_than_the_means_are_refused(likelihood):
    with pytest.raises(ValueError, match=r"output's shape \[4, 2\] .*found \[4, 4\]"):
        likelihood.loss(torch.zeros(4, 4), torch.zeros(4, 4))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: HeteroscedasticGaussian(beta=1.5), "beta should lie in"),
        (lambda: HeteroscedasticGaussian(beta=NAN), "beta should lie in"),
        (lambda: HeteroscedasticCategorical(samples=0), "samples should be .* found 0"),
        (lambda: HeteroscedasticCategorical(samples=2.5), "samples should be .* found 2.5"),
        (lambda: AsGeneric(Gaussian()), r"should be normalised and of a task: found Gaussian\(\)"),
    ],
)
def test_numbers_that_make_no_sense(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# -- numerics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", KINDS)
@pytest.mark.parametrize("far", [-300.0, 300.0])
def test_log_variances_far_out_have_finite_gradients_that_lead_back(likelihood, far):
    mean = torch.tensor([[3.0, -2.0]])
    log_variance = torch.full((1, 2), far, requires_grad=True)
    mean.requires_grad_()
    target = torch.tensor([1]) if isinstance(likelihood, HeteroscedasticCategorical) else torch.zeros(1, 2)
    total, _ = likelihood.loss(output_of(mean, log_variance), target)
    total.backward()
    assert total.isfinite()
    assert mean.grad.isfinite().all()
    assert log_variance.grad.isfinite().all()
    if not isinstance(likelihood, HeteroscedasticCategorical):
        assert (log_variance.grad * far > 0).all()  # descent leads towards 0


@pytest.mark.parametrize("likelihood", REGRESSIONS)
def test_no_residual_at_all_leads_no_further_out(likelihood):
    log_variance = torch.full((1, 1), -300.0, requires_grad=True)
    likelihood.loss(output_of(torch.zeros(1, 1), log_variance), torch.zeros(1, 1))[0].backward()
    assert log_variance.grad.item() == 0.0


@pytest.mark.parametrize("likelihood", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_outputs_are_summed_in_float32(likelihood, dtype):
    output = output_of(torch.randn(4, 2), no_noise(2, 4) / 30).to(dtype)
    target = torch.tensor([0, 1, 0, 1])
    target = target if isinstance(likelihood, HeteroscedasticCategorical) else torch.randn(4, 2)
    torch.manual_seed(0)
    total, _ = likelihood.loss(output, target)
    torch.manual_seed(0)
    assert total.dtype is torch.float32
    torch.testing.assert_close(total, likelihood.loss(output.float(), target)[0])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
@pytest.mark.parametrize("likelihood", REGRESSIONS)
def test_compiles_as_one_graph(likelihood):
    output, target = torch.randn(4, 2, requires_grad=True), torch.randn(4, 1)
    compiled = torch.compile(lambda f, y: likelihood.loss(f, y)[0], fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(output, target), output)
    torch.testing.assert_close(found, torch.autograd.grad(likelihood.loss(output, target)[0], output)[0])


# -- as likelihoods ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", KINDS)
def test_they_are_normalised_and_named(likelihood):
    assert likelihood.normalised
    assert (likelihood.factor, likelihood.exponent, likelihood.penalty, likelihood.log_ratio) == (1.0, 0.0, 0.0, 0.0)
    assert likelihood.optimum(0.3) == likelihood.optimum(-2.0) == 0.0
    assert likelihood.name == type(likelihood).__name__
    assert likelihood.meaning == "its head's, per element"
    assert replace(likelihood) == likelihood
    assert hash(replace(likelihood)) == hash(likelihood)


def test_as_generic_is_weighed_by_a_scale_of_its_own():
    inner = HeteroscedasticGaussian()
    outer = AsGeneric(inner)
    output, target = torch.randn(5, 4), torch.randn(5, 2)
    assert not outer.normalised
    assert (outer.factor, outer.exponent, outer.penalty) == (0.5, 1.0, 0.5)
    assert math.exp(outer.optimum(0.7)) == pytest.approx(0.7)
    torch.testing.assert_close(outer.loss(output, target), inner.loss(output, target))
    torch.testing.assert_close(outer.observed(output, target), inner.observed(output, target))
    nothing, one = torch.tensor(NAN), torch.tensor(1.0)
    torch.testing.assert_close(outer.predicted(output[None], nothing, one), inner.predicted(output[None], nothing, one))


@pytest.mark.parametrize("likelihood", REGRESSIONS)
def test_prediction_has_the_variance_of_the_head_and_that_of_the_means(likelihood):
    means = float64([[[1.0, 2.0]], [[1.2, 1.0]], [[0.8, 3.0]]])
    variances = float64([[[0.1, 0.5]], [[0.2, 0.4]], [[0.3, 0.6]]])
    outputs = torch.cat([means, variances.log()], 2)
    found = likelihood.predicted(outputs, torch.tensor(NAN), torch.tensor(1.0))
    close(found.mean, [[1.0, 2.0]])
    close(found.aleatoric.square(), [[0.2, 0.5]])
    close(found.epistemic.square(), [[0.026666666666666655, 0.6666666666666666]])
    close(found.total.square(), [[0.22666666666666668, 1.1666666666666665]])
    corrected = likelihood.predicted(outputs, torch.tensor(NAN), torch.tensor(3.0))
    close(corrected.aleatoric.square(), [[1.8, 4.5]])
    close(corrected.epistemic, found.epistemic.tolist())


def test_prediction_of_classes_averages_noise_and_samples():
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 4)
    quiet = torch.cat([logits, torch.full_like(logits, -60.0)], 2)
    one, none = torch.tensor(1.0), torch.tensor(NAN)
    found = HeteroscedasticCategorical().predicted(quiet, none, one)
    torch.testing.assert_close(found.mean, logits.softmax(2).mean(0))
    assert found.total.shape == (5,)
    cooled = HeteroscedasticCategorical().predicted(quiet, none, torch.tensor(2.0))
    torch.testing.assert_close(cooled.mean, (logits / 2).softmax(2).mean(0))
    loud, many = torch.cat([logits, torch.full_like(logits, 2.0)], 2), HeteroscedasticCategorical(samples=20_000)
    noisy = (logits + math.e * torch.randn(20_000, 3, 5, 4)) / 2
    wanted = noisy.softmax(3).mean((0, 1))
    torch.testing.assert_close(many.predicted(loud, none, torch.tensor(2.0)).mean, wanted, atol=0.01, rtol=0)


@pytest.mark.parametrize("likelihood", [*REGRESSIONS, AsGeneric(HeteroscedasticGaussian())])
def test_outputs_and_predictions_of_observed_labels_are_the_same(likelihood):
    output, target, one = torch.randn(3, 4), torch.tensor([[1.0, NAN], [2.0, 3.0], [NAN, NAN]]), torch.tensor(1.0)
    outputs, labels = likelihood.outputs_of(output, target)
    assert outputs.tolist() == [[output[i, j], output[i, j + 2]] for i, j in ((0, 0), (1, 0), (1, 1))]
    paired, paired_labels = likelihood.paired(likelihood.predicted(output[None], one, one), target)
    for part, alone in zip(paired, likelihood.predicted(outputs[None], one, one), strict=True):
        torch.testing.assert_close(part, alone[:, 0])
    assert labels.tolist() == paired_labels.tolist() == [1.0, 2.0, 3.0]


def test_outputs_and_predictions_of_observed_classes_are_the_same():
    likelihood, one = AsGeneric(HeteroscedasticCategorical()), torch.tensor(1.0)
    output, label = output_of(torch.randn(3, 4), no_noise(4, 3)), torch.tensor([3, -100, 0])
    outputs, labels = likelihood.outputs_of(output, label)
    assert torch.equal(outputs, output[[0, 2]])
    paired, paired_labels = likelihood.paired(likelihood.predicted(output[None], one, one), label)
    torch.testing.assert_close(paired, likelihood.predicted(outputs[None], one, one))
    assert labels.tolist() == paired_labels.tolist() == [3, 0]


def test_prediction_of_images_keeps_their_shape():
    outputs = torch.randn(2, 3, 4, 5, 6)
    one = torch.tensor(1.0)
    assert HeteroscedasticGaussian().predicted(outputs, one, one).total.shape == (3, 2, 5, 6)
    assert HeteroscedasticCategorical().predicted(outputs, one, one).mean.shape == (3, 2, 5, 6)


# -- training ----------------------------------------------------------------------------------------------------------


class Net(MultiTaskMixin, LightningModule):
    """Two heads that give the noise of each element, one beside them whose noise is learnt for the task."""

    def __init__(self, batch):
        super().__init__()

        def head(name):
            start = 2 * batch[name].std().log().item()
            return HeteroscedasticHead(nn.Linear(1, 1), nn.Linear(1, 1), start=start, burn_in=50)

        self.register_tasks(
            {
                "depth": Task(HeteroscedasticGaussian(), head=head("depth")),
                "mass": Task(HeteroscedasticGaussian(), head=head("mass")),
                "mass_too": Task("gaussian", head=nn.Linear(1, 1)),
            }
        )


def test_beside_a_homoscedastic_task_both_find_the_noise():
    torch.manual_seed(0)
    x = torch.rand(2048, 1) * 2 - 1
    varying, constant = torch.exp(x - 1), 3.0
    batch = {"depth": 2 * x + varying * torch.randn_like(x), "mass": 5 * x + constant * torch.randn_like(x)}
    batch["mass_too"] = batch["mass"]
    net = Net(batch)
    optimizer = torch.optim.Adam(net.parameter_groups(lr=0.03))
    for _ in range(400):
        optimizer.zero_grad()
        net.task_step(x, batch, "train").backward()
        optimizer.step()
    with torch.no_grad():
        outputs = net.task_outputs(x)
    found = {name: outputs[name][:, 1:].div(2).exp() for name in ("depth", "mass")}
    assert (found["depth"] / varying).log().abs().max() < 0.15
    rmse = (outputs["mass_too"] - batch["mass"]).square().mean().sqrt().item()
    assert net.sigma() == {"mass_too": pytest.approx(rmse, rel=0.02)}
    assert found["mass"].square().mean().sqrt().item() == pytest.approx(rmse, rel=0.02)
    assert rmse == pytest.approx(constant, rel=0.05)
    assert net.take_row()["weight"]["depth"] == 1.0
