import pytest
import torch

from lightning_uncertainty.adoption._counts import of_all_ranks, size_of


@pytest.mark.parametrize("seen", [True, False])
def test_a_loss_of_all_ranks_has_the_gradient_of_the_global_mean_after_ranks_are_averaged(seen):
    """Two ranks with shares of three numbers; a host reduces the loss itself and multiplies it by the ranks."""
    numbers = [torch.tensor([1.0, 2.0]).double(), torch.tensor([6.0]).double()]
    factor = torch.tensor(2.0).double()
    (expected,) = torch.autograd.grad((torch.cat(numbers) * factor.requires_grad_()).square().mean(), factor)
    gradients = []
    for rank in range(2):
        own = factor.detach().clone().requires_grad_()
        parts = [(part * (own if at == rank else factor.detach())).square().sum() for at, part in enumerate(numbers)]
        loss = sum(parts) / 3  # a reduction over ranks has the gradient of this rank's share
        found = of_all_ranks(loss if seen else 2 * loss, 2, seen=seen)
        assert found.item() == pytest.approx(loss.item())
        gradients.append(torch.autograd.grad(found, own)[0])
    assert torch.allclose(sum(gradients) / 2, expected)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.ones(3, 2), 3),
        ({"x": torch.ones(5), "y": torch.ones(5)}, 5),
        ([torch.ones(4)], 4),
        (None, 1),
    ],
)
def test_the_size_of_a_batch_is_lightnings(batch, size):
    assert size_of(batch) == size
