import pytest
import torch

from lightning_uncertainty._tensors import one_way_clamp

INF = torch.inf


def through(x, pull, low, high):
    """Value and gradient of `pull · y`."""
    x = torch.tensor(x, requires_grad=True)
    y = one_way_clamp(x, torch.tensor(low), torch.tensor(high))
    (torch.tensor(pull) * y).sum().backward()
    return y.tolist(), x.grad.tolist()


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (-INF, 2.0), (-1.0, INF), (-INF, INF)])
def test_values_are_torchs_clamp_and_gradients_that_of_x_within(low, high):
    x = [-5.0, -0.5, 0.0, 1.9, 50.0]
    values, _ = through(x, [1.0] * 5, low, high)
    assert values == torch.tensor(x).clamp(low, high).tolist()
    _, gradients = through([-0.5, 0.0, 1.9], [3.0, -2.0, 0.0], low, high)
    assert gradients == [3.0, -2.0, 0.0]


def test_outside_only_what_leads_back_is_kept():
    # descent lowers x where the gradient is positive
    assert through([-4.0, -4.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0], -1.0, 2.0)[1] == [0.0, -1.0, 0.0, -1.0]
    assert through([9.0, 9.0, 2.0, 2.0], [1.0, -1.0, 1.0, -1.0], -1.0, 2.0)[1] == [1.0, 0.0, 1.0, 0.0]


def test_descent_ends_at_the_bound_and_returns_from_it_at_once():
    x = torch.tensor([0.0], requires_grad=True)
    adam = torch.optim.Adam([x], lr=0.1)

    def descend(goal, steps):
        for _ in range(steps):
            adam.zero_grad()
            y = one_way_clamp(x, torch.tensor(-1.0), torch.tensor(1.0))
            (y - goal).square().sum().backward()
            adam.step()
        return y.item()

    assert descend(-30.0, 500) == -1.0
    assert x.item() > -3.0  # momentum alone carries it out
    assert descend(0.5, 300) == pytest.approx(0.5, abs=0.01)
