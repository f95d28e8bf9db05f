import json
import math
from pathlib import Path

import pytest
import torch
from torch import distributions
from torch.nn import functional as F

from lightning_uncertainty.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    CategoricalHalf,
    Gaussian,
    Generic,
    L1Kendall,
    Laplace,
    Likelihood,
    Poisson,
    as_likelihood,
    masked_sum,
    optimal_log_variance,
)
from tests._tensors import float64

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text(encoding="utf-8"))
NAN = float("nan")
ELEMENTWISE = [name for name in LIKELIHOODS if not name.startswith("categorical")]
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


# -- the form J = c e^{-a s} L + r s -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("loss", [1e-3, 0.37, 250.0])
def test_optimum_is_the_stationary_point_and_a_minimum(name, loss):
    likelihood = make(name)
    s = float64(likelihood.optimum(loss)).requires_grad_()
    (slope,) = torch.autograd.grad(term(likelihood, loss, s), s, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, s)
    close(slope.detach(), 0.0, rtol=0, atol=1e-9)
    assert curvature > 0


@pytest.mark.parametrize("name", LIKELIHOODS)
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
    kinds = [make(name) for name in LIKELIHOODS]
    losses = torch.linspace(0.1, 5.0, len(kinds))
    a, log_ratio = (torch.tensor([getattr(kind, what) for kind in kinds]) for what in ("exponent", "log_ratio"))
    wanted = [kind.optimum(x) for kind, x in zip(kinds, losses.tolist(), strict=True)]
    close(optimal_log_variance(losses, a, log_ratio), wanted)
    assert optimal_log_variance(torch.zeros(len(kinds)), a, log_ratio).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_ignore_index_is_compared_as_a_number_whatever_the_labels_type(dtype):
    labels = torch.tensor([1, 100, 2]).to(dtype)
    labels[1] = labels[1] + 56 if dtype is torch.uint8 else labels[1]  # 156 is -100 in uint8
    assert Categorical().loss(torch.zeros(3, 300), labels)[1] == 3


def test_class_weights_compile_without_a_warning():
    likelihood = Categorical(class_weights=(1.0, 2.0, 0.5))
    output, label = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    compiled = torch.compile(lambda f, y: likelihood.loss(f, y), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(output, label), likelihood.loss(output, label))


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


# -- against torch.nn.functional and torch.distributions ---------------------------------------------------------------


@pytest.mark.parametrize("s", [-1.3, 0.0, 2.2])
def test_gaussian_is_the_normal_likelihood(s):
    output, target = draw("gaussian", 6, 3)
    nll = -distributions.Normal(output, math.exp(s / 2)).log_prob(target).mean()
    close(term(Gaussian(), mean(Gaussian().loss(output, target)), torch.tensor(s)) + 0.5 * math.log(2 * math.pi), nll)


@pytest.mark.parametrize("s", [-1.3, 0.0, 2.2])
def test_laplace_is_the_laplace_likelihood_with_its_standard_deviation(s):
    output, target = draw("laplace", 6, 3)
    density = distributions.Laplace(output, math.exp(s / 2) / math.sqrt(2))
    close(density.stddev.mean(), math.exp(s / 2))
    nll = -density.log_prob(target).mean()
    close(term(Laplace(), mean(Laplace().loss(output, target)), torch.tensor(s)) + 0.5 * math.log(2), nll)


def test_l1_kendall_is_the_absolute_error():
    output, target = draw("l1_kendall", 6, 3)
    close(mean(L1Kendall().loss(output, target)), F.l1_loss(output, target))


@pytest.mark.parametrize("shape", [(7,), (7, 3), (4, 3, 2)])
def test_categorical_is_torchs_cross_entropy(shape):
    output, target = draw("categorical", *shape)
    close(mean(Categorical().loss(output, target)), F.cross_entropy(output, target))
    close(mean(CategoricalHalf().loss(output, target)), F.cross_entropy(output, target))


@pytest.mark.parametrize("kind", [Categorical, CategoricalHalf])
@pytest.mark.parametrize("ignore_index", [-100, 1, 255])
def test_categorical_with_class_weights_and_ignored_labels(kind, ignore_index):
    output, target = draw("categorical", 9, 2)
    target[::3] = ignore_index
    weights = (0.1, 2.0, 0.0, 5.0)
    expected = F.cross_entropy(output, target, weight=torch.tensor(weights), ignore_index=ignore_index)
    close(mean(kind(ignore_index=ignore_index, class_weights=weights).loss(output, target)), expected)


def test_class_weights_may_be_a_list_or_a_tensor():
    for weights in ([1, 2], torch.tensor([1.0, 2.0])):
        assert Categorical(class_weights=weights) == Categorical(class_weights=(1.0, 2.0))


def test_class_weights_made_in_inference_mode_still_train():
    """Lightning's sanity check runs the first validation batch before training, in inference mode."""
    likelihood = Categorical(class_weights=(0.3, 0.7, 0.9))
    output, target = draw("categorical", 5, classes=3)
    with torch.inference_mode():
        likelihood.loss(output, target)
    output.requires_grad_()
    mean(likelihood.loss(output, target)).backward()
    reference = output.detach().clone().requires_grad_()
    F.cross_entropy(reference, target, weight=torch.tensor([0.3, 0.7, 0.9])).backward()
    close(output.grad, reference.grad)


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


def test_bernoulli_is_categorical_of_two_classes():
    output, target = draw("bernoulli", 6)
    logits = torch.stack([torch.zeros(6), output], 1)
    close(mean(Bernoulli().loss(output, target)), mean(Categorical().loss(logits, target.long())))
    for what in ("factor", "exponent", "penalty"):
        assert getattr(Bernoulli, what) == getattr(Categorical, what)


def test_poisson_is_twice_the_log_likelihood_ratio():
    output, target = draw("poisson", 40)
    assert (target == 0).any()
    ratio = distributions.Poisson(target).log_prob(target) - distributions.Poisson(output.exp()).log_prob(target)
    close(mean(Poisson().loss(output, target)), 2 * ratio.mean())


def test_poisson_gradient_is_twice_that_of_torchs_loss():
    output, target = draw("poisson", 40)
    output.requires_grad_()
    (ours,) = torch.autograd.grad(mean(Poisson().loss(output, target)), output)
    (torchs,) = torch.autograd.grad(F.poisson_nll_loss(output, target), output)
    close(ours, 2 * torchs)


def test_poisson_near_a_perfect_fit_is_neither_negative_nor_rounded_away():
    target = torch.arange(1.0, 5001.0).repeat(4)
    shift = torch.logspace(-7, -1, len(target))
    output = target.double().log() + shift.double()
    error = Poisson().error(output.float(), target)
    assert (error >= 0).all()
    exact = 2 * target.double() * (shift.double().expm1() - shift.double())
    large = shift > 1e-2
    close(error[large], exact[large].float(), rtol=2e-3, atol=0)


def test_generic_is_what_it_is_given():
    output, target = draw("generic", 6, 3)
    huber = Generic(lambda output, target: F.huber_loss(output, target, reduction="none"))
    close(mean(huber.loss(output, target)), F.huber_loss(output, target))


# -- missing labels ----------------------------------------------------------------------------------------------------


def with_missing(name, target, missing):
    return target.masked_fill(missing, -100 if name in CATEGORICAL else NAN)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("how", ["label", "mask", "both"])
def test_missing_labels_are_as_if_removed(name, how):
    likelihood = make(name)
    output, target = draw(name, 8)
    missing = torch.tensor([0, 1, 0, 0, 1, 1, 0, 0], dtype=torch.bool)
    by_label = missing if how == "label" else missing & (torch.arange(8) < 3) if how == "both" else missing & False
    output.requires_grad_()
    labels = with_missing(name, target, by_label)
    total, count = likelihood.loss(output, labels, None if how == "label" else ~missing | by_label)
    kept = output.detach()[~missing].requires_grad_()
    expected, expected_count = likelihood.loss(kept, target[~missing])
    assert count == expected_count == 5
    close(total.detach(), expected.detach())
    total.backward()
    expected.backward()
    close(output.grad[~missing], kept.grad)
    assert (output.grad[missing] == 0).all()


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("shape", [(3,), (3, 4, 5), (3, 1, 4, 5), (3, 2, 4, 5), (1, 2, 1, 1)])
def test_masks_with_and_without_channels(name, shape):
    """[B], [B, H, W] for [B, C, H, W], [B, 1, H, W] and the full shape: each is the full mask it stands for."""
    likelihood = make(name)
    output, target = draw(name, 3, 2, 4, 5)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.6
    full = (mask.reshape(3, 1, 1, 1) if shape == (3,) else mask.unsqueeze(1) if len(shape) == 3 else mask).expand(
        3, 2, 4, 5
    )
    total, count = likelihood.loss(output, target, mask)
    assert count == full.sum()
    if full.any():
        close(total / count, likelihood.loss(output[full], target[full])[0] / full.sum())


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5), (3, 1, 5), (1, 4, 1)])
@pytest.mark.parametrize("class_weights", [None, (0.5, 1.0, 2.0, 3.0)])
def test_masks_of_class_labels(shape, class_weights):
    likelihood = Categorical(class_weights=class_weights)
    output, target = draw("categorical", 3, 4, 5)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.7
    full = (mask.reshape(3, 1, 1) if shape == (3,) else mask).expand(3, 4, 5)
    assert full.any()
    weight = None if class_weights is None else torch.tensor(class_weights)
    expected = F.cross_entropy(output.movedim(1, -1)[full], target[full], weight=weight)
    close(mean(likelihood.loss(output, target, mask)), expected)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_all_missing_counts_nothing_and_has_a_finite_gradient(name):
    output, target = draw(name, 4, 3)
    output.requires_grad_()
    total, count = make(name).loss(output, with_missing(name, target, torch.ones(4, 3, dtype=torch.bool)))
    assert count == 0
    assert total == 0
    total.backward()
    assert (output.grad == 0).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_an_empty_batch_counts_nothing(name):
    output, target = draw(name, 4)
    total, count = make(name).loss(output[:0], target[:0])
    assert (total.item(), count.item()) == (0.0, 0.0)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_padding_with_missing_elements_changes_nothing(name):
    likelihood = make(name)
    output, target = draw(name, 6, 3)
    padding, labels = draw(name, 5, 3)
    missing = with_missing(name, labels, torch.ones(5, 3, dtype=torch.bool))
    padded = likelihood.loss(torch.cat([output, 1e3 * padding.abs().neg()]), torch.cat([target, missing]))
    assert [x.item() for x in padded] == pytest.approx([x.item() for x in likelihood.loss(output, target)], rel=1e-6)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_sums_and_counts_add_up_over_ranks(name):
    likelihood = make(name)
    output, target = draw(name, 7, 2)
    parts = [likelihood.loss(output[part], target[part]) for part in (slice(0, 2), slice(2, 7))]
    total, count = (sum(values) for values in zip(*parts, strict=True))
    close(total / count, mean(likelihood.loss(output, target)))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_labels_behind_a_mask_are_not_looked_at(name):
    output, target = draw(name, 4)
    mask = torch.tensor([True, True, False, False])
    spoilt = torch.where(mask, target, torch.tensor([0.0, 0.0, -7.5, float("inf")]))
    close(make(name).loss(output, spoilt, mask), make(name).loss(output, target, mask))


def test_class_labels_behind_a_mask_are_not_looked_at():
    output, target = draw("categorical", 4)
    mask = torch.tensor([True, True, False, False])
    spoilt = torch.where(mask, target, torch.tensor([0, 0, -7, 999]))
    close(Categorical().loss(output, spoilt, mask), Categorical().loss(output, target, mask))


# -- shapes and types --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("shape", [(5,), (1,), (5, 4, 3)])
def test_one_channel_may_be_left_out_of_the_labels(name, shape):
    output, target = draw(name, *shape)
    with_channel = make(name).loss(output.unsqueeze(1), target)
    close(with_channel, make(name).loss(output, target))
    close(with_channel, make(name).loss(output.unsqueeze(1), target.unsqueeze(1)))


def test_a_mask_fits_the_labels_after_the_channel_is_left_out():
    output, target = draw("gaussian", 2, 4, 3)
    mask = torch.arange(24).reshape(2, 4, 3) % 3 == 0
    assert Gaussian().loss(output.unsqueeze(1), target, mask)[1] == 8


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_outputs_are_promoted_before_the_error(name, dtype):
    output, target = draw(name, 300)
    output = output.to(dtype)
    total, count = make(name).loss(output, target)
    assert total.dtype is count.dtype is torch.float32
    close((total, count), make(name).loss(output.float(), target), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_that_half_types_cannot_hold(dtype):
    output = torch.full((4096,), 300.0, dtype=dtype)  # 300² is above float16's 65504, 4096 · 300 as well
    for kind, error in ((Gaussian(), 300.0**2), (Laplace(), 300.0)):
        total, count = kind.loss(output, torch.zeros(4096, dtype=dtype))
        assert (total.item(), count.item()) == (error * 4096, 4096)
    total, count = masked_sum(output, torch.ones(4096, dtype=torch.bool))
    assert (total.item(), count.item()) == (300.0 * 4096, 4096)
    assert count.dtype is total.dtype is torch.float32


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_float64_stays_float64(name):
    output, target = draw(name, 5)
    total, count = make(name).loss(output.double(), target if name in CATEGORICAL else target.double())
    assert total.dtype is count.dtype is torch.float64


@pytest.mark.parametrize("name", ["gaussian", "poisson", "bernoulli"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_whole_numbers_are_labels_too(name, dtype):
    output, target = draw("bernoulli", 5)
    close(make(name).loss(output, target.to(dtype)), make(name).loss(output, target))


def test_booleans_are_bernoulli_labels():
    output, target = draw("bernoulli", 5)
    close(Bernoulli().loss(output, target > 0), Bernoulli().loss(output, target))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_class_indices_of_any_integer_type(dtype):
    output, target = draw("categorical", 5)
    close(Categorical().loss(output, target.to(dtype)), Categorical().loss(output, target))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_compiles_in_one_graph(name):
    torch._dynamo.reset()
    likelihood = make(name)
    output, target = draw(name, 4, 3)
    mask = torch.tensor([True, False, True, True])
    compiled = torch.compile(likelihood.loss, fullgraph=True, backend="eager")
    close(compiled(output, target, mask), likelihood.loss(output, target, mask))


# -- what metrics are given --------------------------------------------------------------------------------------------


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


def test_observed_gives_bernoulli_labels_as_integers():
    label = Bernoulli().observed(torch.zeros(3), torch.tensor([0.0, NAN, 1.0]))[1]
    assert label.dtype is torch.int64
    assert label.tolist() == [0, 1]


def test_observed_gives_class_probabilities():
    output, target = draw("categorical", 4, 3)
    target[1, 2] = -100
    prediction, label = Categorical().observed(output.half(), target.int(), torch.tensor([True, True, False, True]))
    assert prediction.shape == (8, 4)
    assert prediction.dtype is torch.float32
    close(prediction.sum(1), torch.ones(8))
    close(
        F.nll_loss(prediction.log(), label, reduction="sum"),
        Categorical().loss(output.half(), target, torch.tensor([True, True, False, True]))[0],
    )
    assert label.dtype is torch.int64


# -- masked_sum --------------------------------------------------------------------------------------------------------


def test_masked_sum_without_a_mask_counts_all():
    total, count = masked_sum(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert (total.item(), count.item()) == (10.0, 4.0)
    assert total.dim() == count.dim() == 0


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 1, 3), (2, 4, 3)])
def test_masked_sum_expands_the_mask(shape):
    error = torch.arange(24.0).reshape(2, 4, 3)
    mask = torch.arange(math.prod(shape)).reshape(shape) % 2 == 0
    full = {1: mask.reshape(2, 1, 1) if len(shape) == 1 else mask, 2: mask.unsqueeze(1) if len(shape) == 2 else mask}
    full = full.get(len(shape), mask).expand(2, 4, 3)
    total, count = masked_sum(error, mask)
    assert total == error[full].sum()
    assert count == full.sum()


def test_masked_sum_passes_gradient_to_observed_errors_only():
    error = torch.ones(4, requires_grad=True)
    masked_sum(error, torch.tensor([True, False, True, False]))[0].backward()
    assert error.grad.tolist() == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_masked_sum_refuses_what_a_mask_cannot_repair(bad):
    with pytest.raises(ValueError, match="make missing labels finite before the error is computed"):
        masked_sum(torch.tensor([1.0, bad]), torch.tensor([True, False]))


@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_masked_sum_of_a_diverged_network_does_not_blame_the_labels(bad):
    total, count = masked_sum(torch.tensor([bad, bad, 1.0]), torch.tensor([True, False, True]))
    assert not total.isfinite()
    assert count == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
def test_a_mask_is_boolean(dtype):
    with pytest.raises(ValueError, match=r"a mask should be boolean, found .*compare it"):
        masked_sum(torch.ones(3), torch.ones(3).to(dtype))


@pytest.mark.parametrize("shape", [(3,), (4, 2), (2, 4, 2), (2, 4, 3, 1), ()])
def test_a_mask_fits(shape):
    with pytest.raises(ValueError, match=r"with or without their channel dimension.*for errors \[2, 4, 3\]"):
        masked_sum(torch.ones(2, 4, 3), torch.ones(shape, dtype=torch.bool))


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize(("output", "target"), [((4, 2), (4,)), ((4,), (4, 1)), ((4, 3), (3, 4)), ((4, 2, 1), (4, 2))])
def test_shapes_that_would_broadcast_are_refused(name, output, target):
    with pytest.raises(ValueError, match=rf"labels of a {name} task should have the output's shape"):
        make(name).loss(torch.zeros(output), torch.zeros(target))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_complex_labels(name):
    with pytest.raises(ValueError, match=f"labels of a {name} task should be real numbers: found torch.complex64"):
        make(name).loss(torch.zeros(2), torch.zeros(2, dtype=torch.complex64))


@pytest.mark.parametrize("name", CATEGORICAL)
@pytest.mark.parametrize(("output", "target"), [((4,), (4,)), ((4, 3), (4, 1)), ((4, 3, 2), (4, 3)), ((4, 3), (5,))])
def test_shapes_of_class_labels(name, output, target):
    with pytest.raises(ValueError, match=rf"a {name} task should have logits \[B, C, ...\] and labels \[B, ...\]"):
        make(name).loss(torch.zeros(output), torch.zeros(target, dtype=torch.int64))


@pytest.mark.parametrize("name", CATEGORICAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_types_of_class_labels(name, dtype):
    with pytest.raises(ValueError, match=f"labels of a {name} task should be integer class indices: found {dtype}"):
        make(name).loss(torch.zeros(4, 3), torch.zeros(4).to(dtype))
    with pytest.raises(ValueError, match="integer class indices"):
        make(name).observed(torch.zeros(4, 3), torch.zeros(4).to(dtype))


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_classes_out_of_range(label):
    with pytest.raises(ValueError, match=r"with 3 outputs should lie in \[0, 2\].*ignore_index=-100"):
        Categorical().loss(torch.zeros(4, 3), torch.tensor([0, 1, label, 2]))


def test_classes_out_of_range_are_a_nan_loss_where_no_value_is_read():
    torch._dynamo.reset()
    compiled = torch.compile(Categorical().loss, fullgraph=True, backend="eager")
    total, count = compiled(torch.zeros(4, 3), torch.tensor([0, 1, 7, -100]))
    assert total.isnan()
    assert count == 3


@pytest.mark.parametrize("weights", [(1.0, -0.1), (NAN, 1.0)])
def test_class_weights_that_make_no_sense(weights):
    with pytest.raises(ValueError, match="class weights should be at least 0"):
        Categorical(class_weights=weights)


def test_class_weights_for_other_classes():
    with pytest.raises(ValueError, match="one weight for each of 3 outputs, found 2"):
        Categorical(class_weights=(1.0, 2.0)).loss(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("label", [-0.1, 1.1, 255.0])
def test_bernoulli_labels_out_of_range(label):
    with pytest.raises(ValueError, match=r"labels of a bernoulli task should lie in \[0, 1\]: found"):
        Bernoulli().loss(torch.zeros(2), torch.tensor([0.5, label]))


@pytest.mark.parametrize("pos_weight", [0.0, -1.0, NAN])
def test_pos_weight_is_positive(pos_weight):
    with pytest.raises(ValueError, match="pos_weight should be positive"):
        Bernoulli(pos_weight=pos_weight)


def test_poisson_labels_are_counts():
    with pytest.raises(ValueError, match="labels of a poisson task should be counts, at least 0: found -1 to 3"):
        Poisson().loss(torch.zeros(2), torch.tensor([3.0, -1.0]))


def test_generic_needs_its_error():
    with pytest.raises(ValueError, match=r"Generic\(elementwise=...\)"):
        Generic().loss(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"one error per label \[2\]: found \[\].*reduction=\"none\""):
        Generic(F.mse_loss).loss(torch.zeros(2), torch.zeros(2))


def test_likelihood_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Likelihood()


# -- vectors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["uw.gaussian.s0", "uw.gaussian.s_half", "uw.gaussian.opt"])
def test_vector_gaussian(key):
    vector = VECTORS[key]
    loss, s = (float64(vector["inputs"][what]).requires_grad_() for what in ("loss", "s"))
    terms = term(Gaussian(), loss, s)
    weight, grad_s = torch.autograd.grad(terms.sum(), (loss, s))
    vector_close(terms.detach(), vector["expected"]["term"], vector)
    vector_close(weight, vector["expected"]["weight"], vector)
    vector_close(grad_s, vector["expected"]["grad_s"], vector)


def test_vector_negative_loss():
    vector = VECTORS["uw.gaussian.negative_loss"]
    terms = [term(Gaussian(), x, float64(Gaussian().optimum(x))).item() for x in vector["inputs"]["loss"]]
    vector_close(terms, vector["expected"]["optimal_term"], vector)


def test_vector_reductions():
    vector = VECTORS["uw.gaussian.reductions"]
    residuals = float64(vector["inputs"]["residuals"])
    loss = mean(Gaussian().loss(residuals, torch.zeros_like(residuals))).item()
    vector_close(loss, vector["expected"]["mse"], vector)
    for row in vector["expected"]["rows"].values():  # other reductions scale σ; ours is the corrected one
        vector_close(math.exp(Gaussian().optimum(row["loss"]) / 2), row["sigma_naive"], vector)
        vector_close(math.exp(Gaussian().optimum(loss) / 2), row["sigma_corrected"], vector)


def test_vector_masked_ranks():
    vector = VECTORS["uw.gaussian.masked_ranks"]
    ranks = [float64(vector["inputs"][rank]) for rank in ("rank0_residuals", "rank1_residuals")]
    pairs = [Gaussian().loss(residuals, torch.zeros_like(residuals)) for residuals in ranks]
    total, count = (sum(values) for values in zip(*pairs, strict=True))
    vector_close(total / count, vector["expected"]["global_mean"], vector)
    vector_close(sum(mean(pair) for pair in pairs) / 2, vector["expected"]["mean_of_means"], vector)
    vector_close(math.exp(Gaussian().optimum((total / count).item()) / 2), vector["expected"]["sigma_global"], vector)


def test_vector_laplace():
    vector = VECTORS["uw.laplace"]
    expected = vector["expected"]
    residuals = float64(vector["inputs"]["residuals"])
    mae = mean(Laplace().loss(residuals, torch.zeros_like(residuals))).item()
    s = Laplace().optimum(mae)
    vector_close(mae, expected["mae"], vector)
    vector_close(s, expected["s_logvar"], vector)
    vector_close(math.exp(s / 2), expected["sigma_std"], vector)
    vector_close(Laplace.factor * math.exp(-Laplace.exponent * s), expected["weight_logvar"], vector)
    vector_close(term(Laplace(), mae, float64(s)) + 0.5 * math.log(2), expected["nll"], vector)
    vector_close(math.exp(L1Kendall().optimum(mae)), expected["kendall_literal_sigma2"], vector)


def test_vector_softmax():
    vector = VECTORS["uw.softmax"]
    expected = vector["expected"]
    ce = mean(Categorical().loss(float64(vector["inputs"]["logits"]), torch.tensor(vector["inputs"]["labels"]))).item()
    s = Categorical().optimum(ce)
    vector_close(ce, expected["ce"], vector)
    vector_close(s, expected["approx_s_opt"], vector)
    vector_close(math.exp(s), expected["approx_sigma2_opt"], vector)
    vector_close(term(Categorical(), ce, float64(s)), expected["approx_term_opt"], vector)
    vector_close(Categorical.factor * math.exp(-s), expected["approx_weight_opt"], vector)


def test_vector_bernoulli():
    vector = VECTORS["uw.bernoulli"]
    expected = vector["expected"]
    bce = mean(Bernoulli().loss(float64(vector["inputs"]["logits"]), float64(vector["inputs"]["targets"]))).item()
    vector_close(bce, expected["bce_mean"], vector)
    vector_close(Bernoulli().optimum(bce), expected["s_opt"], vector)
    vector_close(Bernoulli.factor * math.exp(-Bernoulli().optimum(bce)), expected["weight_opt"], vector)
    vector_close(term(Bernoulli(), bce, float64(0.0)), expected["term_at_s0"], vector)


def test_vector_poisson():
    vector = VECTORS["uw.poisson"]
    expected = vector["expected"]
    log_rate, counts = float64(vector["inputs"]["mu"]).log(), float64(vector["inputs"]["y"])
    vector_close(Poisson().error(log_rate, counts), expected["unit_deviance"], vector)
    deviance = mean(Poisson().loss(log_rate, counts)).item()
    vector_close(math.exp(Poisson().optimum(deviance)), expected["phi"], vector)
    vector_close(Poisson().optimum(deviance), expected["s_opt"], vector)


# -- predictions -------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("likelihood", ["categorical", "categorical_half"])
def test_predicted_classes_are_softmax_at_the_temperature_whatever_sigma(likelihood):
    outputs = torch.randn(1, 4, 3, 2)
    found = as_likelihood(likelihood).predicted(outputs, torch.tensor(torch.nan), torch.tensor(2.0))
    truth = torch.distributions.Categorical(logits=outputs[0].movedim(1, -1) / 2)
    torch.testing.assert_close(found.mean.movedim(1, -1), truth.probs)
    torch.testing.assert_close(found.total, truth.entropy())


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
