import pytest
import torch

from lightning_uncertainty.architectures._berhu import berhu
from lightning_uncertainty.likelihoods import Generic, masked_sum
from tests._numbers import float64

RESIDUAL = [0.05, -0.1, 0.4, -1.0, 0.15]  # c = 0.2
PER_ELEMENT = [0.05, 0.1, 0.5, 2.6, 0.15]
MEAN = 0.68


def with_largest_error_ten(error):
    """Return the loss of an error beside one of 10, so that c = 2."""
    return berhu(torch.stack([error, error.new_tensor(10.0)]), error.new_zeros(2))[0]


def test_numbers_of_a_worked_example():
    target = float64([3.0, -1.0, 0.5, 2.0, 7.0])
    loss = berhu(target + float64(RESIDUAL), target)
    torch.testing.assert_close(loss, float64(PER_ELEMENT), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss.mean(), float64(MEAN), rtol=1e-9, atol=1e-12)


def test_the_threshold_is_a_fifth_of_the_largest_error_of_the_whole_batch():
    error = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    error[1, 0, 1, 1] = -10
    error[0, 0, 0, 0] = 4  # quadratic, for c = 2 comes from the other sample
    loss = berhu(error, torch.zeros_like(error))
    assert loss[0, 0, 0, 0].item() == pytest.approx((16 + 4) / 4)
    assert loss[1, 0, 1, 1].item() == pytest.approx((100 + 4) / 4)


@pytest.mark.parametrize("sign", [-1, 1])
def test_value_and_slope_are_continuous_at_the_threshold(sign):
    below, above = float64(sign * (2 - 1e-7)).requires_grad_(), float64(sign * (2 + 1e-7)).requires_grad_()
    losses = [with_largest_error_ten(below), with_largest_error_ten(above)]
    slopes = [torch.autograd.grad(loss, error)[0] for loss, error in zip(losses, (below, above), strict=True)]
    torch.testing.assert_close(torch.stack(losses), float64([2.0, 2.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.stack(slopes), float64([1.0, 1.0]) * sign, rtol=0, atol=1e-6)


@pytest.mark.parametrize("error", [-7.0, -1.5, 0.3, 1.9, 2.1, 9.0])
def test_gradient_equals_finite_differences(error):
    assert torch.autograd.gradcheck(with_largest_error_ten, float64(error).requires_grad_())


def test_the_threshold_is_a_constant_to_the_gradient():
    output = float64([1.0, 4.0, 10.0]).requires_grad_()
    (gradient,) = torch.autograd.grad(berhu(output, torch.zeros_like(output)).sum(), output)
    torch.testing.assert_close(gradient, float64([1.0, 2.0, 5.0]))  # 1, then e / c with c = 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_no_errors_have_no_loss_and_no_gradient(dtype):
    output = torch.ones(3, dtype=dtype, requires_grad=True)
    loss = berhu(output, torch.ones(3, dtype=dtype))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0, 0.0]
    assert output.grad.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("scale", [1e-30, 1e-42, 1e30])
def test_squares_neither_vanish_nor_overflow(scale):
    output = torch.tensor([0.4, 1.0]).mul(scale).requires_grad_()
    loss = berhu(output, torch.zeros(2))
    loss.sum().backward()
    torch.testing.assert_close(loss.detach().double() / scale, float64([0.5, 2.6]), rtol=0.01, atol=0)
    assert output.grad.isfinite().all()


def test_an_empty_batch_has_no_loss():
    assert berhu(torch.ones(0, 1, 4, 4), torch.ones(0, 1, 4, 4)).shape == (0, 1, 4, 4)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"one shape: found \[2, 1, 3\], \[2, 3\]"):
        berhu(torch.ones(2, 1, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"one shape: found \[2, 3\], \[2, 3\], \[2\]"):
        berhu(torch.ones(2, 3), torch.ones(2, 3), observed=torch.ones(2, dtype=torch.bool))


def test_is_the_error_of_a_generic_task():
    total, count = Generic(berhu).loss(float64(RESIDUAL), torch.zeros(5, dtype=torch.float64))
    assert (total / count).item() == pytest.approx(MEAN, rel=1e-9)


def test_missing_labels_enter_the_threshold_unless_they_are_kept_out():
    target = float64([1.0, 1.0, float("nan")])
    output = float64([1.4, 2.0, 500.0])
    total, _ = Generic(berhu).loss(output, target)
    assert total.item() == pytest.approx(0.4 + 1.0)  # c = 100 of a label that nobody knows
    known = Generic(lambda output, target: berhu(output, target, observed=target > 0))
    total, count = known.loss(output, target)
    assert (total.item(), count.item()) == (pytest.approx(0.5 + 2.6), 2.0)


def test_errors_of_missing_labels_have_no_loss_and_no_gradient():
    output = float64([3.0, 1.0, 1.0]).requires_grad_()
    observed = torch.tensor([False, True, True])
    loss = berhu(output, torch.ones_like(output), observed=observed)
    assert loss.tolist() == [0.0, 0.0, 0.0]
    total, count = masked_sum(loss, observed)
    total.backward()
    assert (total.item(), count.item()) == (0.0, 2.0)
    assert output.grad.tolist() == [0.0, 0.0, 0.0]
