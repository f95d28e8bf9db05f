import copy
import math
import pickle
import re

import pytest
import torch
from torch.nn import functional as F

from lightning_uncertainty.likelihoods import (
    Categorical,
    CategoricalHalf,
    HeteroscedasticCategorical,
    as_likelihood,
)
from tests._numbers import float64
from tests.likelihoods._likelihoods import CATEGORICAL, NAN, VECTORS, close, draw, make, mean, term, vector_close


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


@pytest.mark.parametrize("kind", [Categorical, CategoricalHalf])
def test_beside_a_sum_of_class_weights_stands_the_number_of_labels(kind):
    output, target = torch.randn(5, 3), torch.tensor([0, 1, 2, -100, 2])
    mask = torch.tensor([True, True, True, True, False])
    likelihood = kind(class_weights=(0.1, 0.2, 0.4))
    pair = likelihood.loss(output, target, mask)
    total, count = pair
    assert count.item() == pytest.approx(0.7)
    assert pair.labels == 3
    for copied in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        assert copied.labels == 3
        assert copied[0] == total
    compiled = torch.compile(likelihood.loss, fullgraph=True, backend="eager")
    assert compiled(output, target, mask).labels == 3


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


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_class_indices_of_any_integer_type(dtype):
    output, target = draw("categorical", 5)
    close(Categorical().loss(output, target.to(dtype)), Categorical().loss(output, target))


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


@pytest.mark.parametrize("name", CATEGORICAL)
@pytest.mark.parametrize(("output", "target"), [((4,), (4,)), ((4, 3), (4, 1)), ((4, 3, 2), (4, 3)), ((4, 3), (5,))])
def test_shapes_of_class_labels(name, output, target):
    with pytest.raises(ValueError, match=rf"a {name} task should have logits \[B, C, ...\] and labels \[B, ...\]"):
        make(name).loss(torch.zeros(output), torch.zeros(target, dtype=torch.int64))


MENDS = {
    "output.flatten(2).mean(2)": lambda output, label: (output.flatten(2).mean(2), label),
    "output.movedim(-1, 1)": lambda output, label: (output.movedim(-1, 1), label),
    "label.squeeze(1)": lambda output, label: (output, label.squeeze(1)),
}


@pytest.mark.parametrize(
    ("output", "target", "mend"),
    [
        ((4, 3, 5, 5), (4,), "output.flatten(2).mean(2)"),
        ((4, 3, 1), (4,), "output.flatten(2).mean(2)"),
        ((4, 5, 6, 3), (4, 5, 6), "output.movedim(-1, 1)"),
        ((4, 3), (4, 1), "label.squeeze(1)"),
        ((4, 3, 5), (4, 1, 5), "label.squeeze(1)"),
    ],
)
def test_shapes_that_do_not_fit_are_told_what_makes_them_fit(output, target, mend):
    output, label = torch.zeros(output), torch.zeros(target, dtype=torch.int64)
    with pytest.raises(ValueError, match=re.escape(mend)):
        Categorical().loss(output, label)
    output, label = MENDS[mend](output, label)
    assert Categorical().loss(output, label)[1] == label.numel()


@pytest.mark.parametrize("name", CATEGORICAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_types_of_class_labels(name, dtype):
    with pytest.raises(ValueError, match=f"labels of a {name} task should be integer class .* found {dtype}"):
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


@pytest.mark.parametrize("likelihood", ["categorical", "categorical_half"])
def test_predicted_classes_are_softmax_at_the_temperature_whatever_sigma(likelihood):
    outputs = torch.randn(1, 4, 3, 2)
    found = as_likelihood(likelihood).predicted(outputs, torch.tensor(torch.nan), torch.tensor(2.0))
    truth = torch.distributions.Categorical(logits=outputs[0].movedim(1, -1) / 2)
    torch.testing.assert_close(found.mean.movedim(1, -1), truth.probs)
    torch.testing.assert_close(found.total, truth.entropy())


@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 3.0, 0.1)])
@pytest.mark.parametrize("shape", [(8,), (8, 5), (8, 4, 3)])
def test_label_smoothing_is_torchs(shape, weights):
    output, target = draw("categorical", *shape)
    target[1] = -100
    torchs = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(output, target, torchs, label_smoothing=0.2)
    pair = Categorical(class_weights=weights, label_smoothing=0.2).loss(output, target)
    close(mean(pair), expected)
    assert pair.labels == (target >= 0).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 3.0, 0.1)])
@pytest.mark.parametrize("shape", [(8,), (8, 5), (8, 4, 3)])
def test_probabilities_as_labels_are_torchs(shape, weights, smoothing):
    output, _ = draw("categorical", *shape)
    target = torch.randn_like(output).softmax(1)
    torchs = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(output[1:], target[1:], torchs, label_smoothing=smoothing)
    target[0] = NAN
    likelihood = Categorical(class_weights=weights, label_smoothing=smoothing)
    output.requires_grad_()
    total, count = likelihood.loss(output, target)
    close((total / count).detach(), expected)
    total.backward()
    assert output.grad.isfinite().all()
    assert not output.grad[0].any()
    prediction, label = likelihood.observed(output.detach(), target)
    assert label.equal(target[1:].argmax(1).reshape(-1))
    assert prediction.shape == (len(label), 4)


def test_probabilities_of_one_class_are_its_index_for_noisy_logits_too():
    likelihood, target = HeteroscedasticCategorical(), torch.tensor([0, 2, 1])
    output, soft = torch.cat([torch.randn(3, 3), torch.full((3, 3), -60.0)], 1), F.one_hot(target, 3).float()
    close(mean(likelihood.loss(output, soft)), mean(likelihood.loss(output, target)))
    for own, other in zip(likelihood.outputs_of(output, soft), likelihood.outputs_of(output, target), strict=True):
        assert own.equal(other)


def test_probabilities_with_focal_or_that_are_none_are_refused():
    output, target = torch.zeros(2, 3), torch.full((2, 3), 1 / 3)
    with pytest.raises(ValueError, match=r"with focal=2.0 should be class indices: found probabilities"):
        Categorical(focal=2.0).loss(output, target)
    for wrong in (3 * target, torch.tensor([[2.0, -1.0, 0.0]] * 2)):
        with pytest.raises(ValueError, match=r"probabilities should be at least 0, with sum 1 over classes: found"):
            Categorical().loss(output, wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing should lie in \[0, 1\), without focal: found 1.0"),
        ({"label_smoothing": "x"}, "label_smoothing should lie in"),
        ({"label_smoothing": 0.1, "focal": 2.0}, "without focal: found 0.1 with focal=2.0"),
        ({"class_weights": 2.0}, "class weights should be .* one for each class: found 2.0"),
        ({"class_weights": "abc"}, "class weights should be"),
        ({"class_weights": ()}, "class weights should be"),
        ({"class_weights": [[1.0, 2.0]]}, "class weights should be"),
        ({"ignore_index": None}, "ignore_index should be a whole number, as -100 or 255: found None"),
        ({"ignore_index": 1.5}, "ignore_index should be a whole number"),
        ({"focal": "x"}, "focal should be an exponent"),
    ],
)
def test_slips_in_options_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        Categorical(**options)


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_what_is_no_tensor_is_told(likelihood):
    output, target = draw(likelihood, 4)
    for arguments in ((output, target.tolist()), ((output,), target), (output, target, [True] * 4)):
        with pytest.raises(ValueError, match=rf"of a {likelihood} task should be a tensor: found a (list|tuple)"):
            as_likelihood(likelihood).loss(*arguments)
    with pytest.raises(ValueError, match=r"real numbers: found torch\.complex64"):
        as_likelihood(likelihood).loss(output * 1j, target)
