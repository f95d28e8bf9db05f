import pytest
import torch
from torch import nn

from lightning_uncertainty.architectures._task_attention import TaskAttention
from tests._numbers import float64

FIRST = [[[[-0.5, -0.2], [0.1, 0.4]], [[0.7, 1.0], [1.3, 1.6]]]]
SECOND = [[[[0.4, 0.2], [0.0, -0.2]], [[-0.4, -0.6], [-0.8, -1.0]]]]
PSI1 = [[0.5, 0.0, 0.5, 0.0], [0.0, -0.5, 0.0, 0.5]]
PSI2 = [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]]
PSI3 = [[0.5, 0.0, 0.5, 0.0], [0.0, 0.5, 0.0, 0.5]]
BALANCED = [
    [
        [[-0.4974055381622151, -0.5139846886765675], [-0.5413701796973021, -0.5758433080509827]],
        [[0.46110404488612367, 0.4100255188723876], [0.3369926310631998, 0.24765986462769424]],
    ]
]
ATTENDED = [
    [
        [[-0.06890752851973037, 0.0], [0.068393445057549, 0.135988960821834]],
        [[0.2419914080358878, 0.3202187995558936], [0.39586495315143944, 0.46848012907687375]],
    ]
]


def features(channels, *size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 2, channels, *size, generator=generator, dtype=torch.float64).unbind()


def worked_example():
    attention = TaskAttention(2).double()
    attention.refine = nn.Identity()
    for psi, weight in ((attention.psi1, PSI1), (attention.psi2, PSI2), (attention.psi3, PSI3)):
        psi.weight.data = float64(weight)[:, :, None, None]
        psi.bias.data.zero_()
    return attention


def test_numbers_of_a_worked_example():
    attention, seen = worked_example(), []
    attention.refine.register_forward_hook(lambda module, args, output: seen.append(output))
    attended = attention(float64(FIRST), float64(SECOND))
    torch.testing.assert_close(seen[0], float64(BALANCED), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(attended, float64(ATTENDED), rtol=1e-9, atol=1e-12)


def test_refined_features_gate_both_tasks():
    torch.manual_seed(0)
    attention = TaskAttention(3).double()
    first, second = features(3, 4, 4)
    with torch.no_grad():
        attention.refine.deconv.weight.zero_()
        for logit, gain in ((-100.0, 1.0), (0.0, 1.5), (100.0, 2.0)):
            attention.refine.deconv.bias.fill_(logit)
            expected = attention.psi3(gain * torch.cat([first, second], 1))
            torch.testing.assert_close(attention(first, second), expected)


def test_balance_decides_between_the_tasks():
    attention = worked_example()
    attention.psi1.weight.data.zero_()
    seen = []
    attention.refine.register_forward_hook(lambda module, args, output: seen.append(output))
    first, second = float64(FIRST), float64(SECOND)
    for logit, kept in ((100.0, (first, 0 * second)), (-100.0, (0 * first, second))):
        attention.psi1.bias.data.fill_(logit)
        attention(first, second)
        torch.testing.assert_close(seen[-1], attention.psi2(torch.cat(kept, 1)))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (5, 7), (6, 4), (5, 8)])
def test_any_size_is_kept(size):
    first, second = features(2, *size)
    attended = TaskAttention(2).double()(first, second)
    assert attended.shape == first.shape


@pytest.mark.parametrize("width", [8, 9])
def test_refinement_stays_in_place(width):
    refine = TaskAttention(1).double().refine
    nn.init.ones_(refine.conv.weight)
    nn.init.ones_(refine.deconv.weight)
    nn.init.zeros_(refine.conv.bias)
    nn.init.zeros_(refine.deconv.bias)
    spot = torch.zeros(1, 1, 1, width, dtype=torch.float64)
    spot[..., 4] = 1
    assert refine(spot).flatten().nonzero().flatten().tolist() == [3, 4, 5]


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    attention = TaskAttention(4).double()
    attention(*features(4, 5, 6)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in attention.parameters())


def test_gradient_equals_finite_differences():
    torch.manual_seed(0)
    attention = TaskAttention(2).double()
    inputs = [x.requires_grad_() for x in features(2, 3, 2)]
    assert torch.autograd.gradcheck(attention, inputs)


def test_features_of_two_shapes_are_refused():
    first, second = torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 5)
    with pytest.raises(ValueError, match=r"one shape: found \[1, 2, 4, 4\] and \[1, 2, 4, 5\]"):
        TaskAttention(2)(first, second)
