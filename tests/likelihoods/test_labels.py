import math

import pytest
import torch
from torch.nn import functional as F

from lightning_uncertainty.likelihoods import (
    Categorical,
    Gaussian,
    Laplace,
    masked_sum,
)
from tests.likelihoods._likelihoods import CATEGORICAL, ELEMENTWISE, NAN, WEIGHED, close, draw, make, mean, with_missing


@pytest.mark.parametrize("name", WEIGHED)
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


@pytest.mark.parametrize("name", WEIGHED)
def test_all_missing_counts_nothing_and_has_a_finite_gradient(name):
    output, target = draw(name, 4, 3)
    output.requires_grad_()
    total, count = make(name).loss(output, with_missing(name, target, torch.ones(4, 3, dtype=torch.bool)))
    assert count == 0
    assert total == 0
    total.backward()
    assert (output.grad == 0).all()


@pytest.mark.parametrize("name", WEIGHED)
def test_an_empty_batch_counts_nothing(name):
    output, target = draw(name, 4)
    total, count = make(name).loss(output[:0], target[:0])
    assert (total.item(), count.item()) == (0.0, 0.0)


@pytest.mark.parametrize("name", WEIGHED)
def test_padding_with_missing_elements_changes_nothing(name):
    likelihood = make(name)
    output, target = draw(name, 6, 3)
    padding, labels = draw(name, 5, 3)
    missing = with_missing(name, labels, torch.ones(5, 3, dtype=torch.bool))
    padded = likelihood.loss(torch.cat([output, 1e3 * padding.abs().neg()]), torch.cat([target, missing]))
    assert [x.item() for x in padded] == pytest.approx([x.item() for x in likelihood.loss(output, target)], rel=1e-6)


@pytest.mark.parametrize("name", WEIGHED)
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


@pytest.mark.parametrize("name", WEIGHED)
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


@pytest.mark.parametrize("name", WEIGHED)
def test_float64_stays_float64(name):
    output, target = draw(name, 5)
    total, count = make(name).loss(output.double(), target if name in CATEGORICAL else target.double())
    assert total.dtype is count.dtype is torch.float64


@pytest.mark.parametrize("name", ["gaussian", "poisson", "bernoulli"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_whole_numbers_are_labels_too(name, dtype):
    output, target = draw("bernoulli", 5)
    close(make(name).loss(output, target.to(dtype)), make(name).loss(output, target))


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


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize(("output", "target"), [((4, 2), (4,)), ((4,), (4, 1)), ((4, 3), (3, 4)), ((4, 2, 1), (4, 2))])
def test_shapes_that_would_broadcast_are_refused(name, output, target):
    with pytest.raises(ValueError, match=rf"labels of a {name} task should have the output's shape"):
        make(name).loss(torch.zeros(output), torch.zeros(target))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_complex_labels(name):
    with pytest.raises(ValueError, match=f"labels of a {name} task should be real numbers: found torch.complex64"):
        make(name).loss(torch.zeros(2), torch.zeros(2, dtype=torch.complex64))


@pytest.mark.parametrize("wrong", [([1.0, 2.0],), (torch.ones(2), [True, False]), (torch.ones(2) * 1j,)])
def test_what_is_no_error_is_told(wrong):
    with pytest.raises(ValueError, match="error and mask should be tensors, real and boolean: found"):
        masked_sum(*wrong)
