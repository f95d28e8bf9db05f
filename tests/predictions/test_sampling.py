from collections import namedtuple

import pytest
import torch
from torch import nn

from lightning_uncertainty.predictions import mc_dropout, sample

P = 0.25


class Net(nn.Module):
    """Predicts two tasks behind dropout, from what `take` finds in the inputs, and counts the rows of its calls."""

    def __init__(self, take=lambda inputs: inputs, p=P):
        super().__init__()
        self.dropout, self.depth, self.kind = nn.Dropout(p), nn.Linear(4, 1, bias=False), nn.Linear(4, 3)
        self.take, self.rows = take, []

    def forward(self, inputs):
        features = self.dropout(self.take(inputs))
        self.rows.append(len(features))
        return {"depth": self.depth(features), "kind": self.kind(features)}


@pytest.mark.parametrize("max_rows", [1, 6, 10, 64])
def test_samples_come_first(max_rows):
    net = Net()
    outputs = sample(net, torch.randn(2, 4), 7, module=net, max_rows=max_rows)
    assert {task: list(output.shape) for task, output in outputs.items()} == {"depth": [7, 2, 1], "kind": [7, 2, 3]}
    assert not any(output.requires_grad for output in outputs.values())


@pytest.mark.parametrize(("max_rows", "rows"), [(1, [2] * 7), (6, [6, 6, 2]), (10, [10, 4]), (64, [14])])
def test_a_forward_has_no_more_rows_than_allowed(max_rows, rows):
    net = Net()
    sample(net, torch.randn(2, 4), 7, module=net, max_rows=max_rows)
    assert net.rows == rows


@pytest.mark.parametrize("max_rows", [1, 1000])
def test_samples_have_the_moments_of_dropout(max_rows):
    """A linear layer behind dropout has mean Σ w x and variance p / (1 - p) Σ w² x², apart for every row."""
    net, inputs = Net(), torch.randn(3, 4)
    outputs = sample(net, inputs, 4000, module=net, max_rows=max_rows)["depth"].squeeze(2)
    weight = net.depth.weight.detach()
    variance = P / (1 - P) * (weight * inputs).square().sum(1)
    error = 5 / 4000**0.5
    assert ((outputs.mean(0) - (weight * inputs).sum(1)).abs() < error * variance.sqrt()).all()
    torch.testing.assert_close(outputs.var(0), variance, rtol=2 * error, atol=0)
    assert (torch.corrcoef(outputs.T) - torch.eye(3)).abs().max() < error


@pytest.mark.parametrize("max_rows", [1, 64])
def test_rows_stay_in_their_places(max_rows):
    """With hardly any dropout every sample is the plain prediction."""
    net, inputs = Net(p=1e-12), torch.randn(5, 4)
    expected = net.eval()(inputs)
    outputs = sample(net, inputs, 3, module=net, max_rows=max_rows)
    torch.testing.assert_close(outputs, {task: output.expand(3, *output.shape) for task, output in expected.items()})


def test_masks_differ_by_sample_and_by_row():
    net = Net(p=0.5)
    outputs = sample(net, torch.ones(2, 4), 30, module=net)["kind"]
    assert len(outputs.flatten(1).unique(dim=0)) > 25
    assert not torch.equal(outputs[:, 0], outputs[:, 1])


def test_a_seed_fixes_the_samples_and_leaves_the_random_state():
    net, inputs = Net(), torch.randn(2, 4)
    state = torch.get_rng_state()
    first, second, other = (sample(net, inputs, 8, module=net, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first["kind"], second["kind"])
    assert not torch.equal(first["kind"], other["kind"])


def test_no_seed_draws_from_the_random_state():
    net, inputs = Net(), torch.randn(2, 4)
    torch.manual_seed(5)
    first, second = (sample(net, inputs, 8, module=net)["kind"] for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(sample(net, inputs, 8, module=net)["kind"], first)
    assert not torch.equal(first, second)


def test_an_error_leaves_random_state_and_modes():
    net = Net().train()

    def forward(inputs):
        net(inputs)
        raise KeyError

    state = torch.get_rng_state()
    with pytest.raises(KeyError):
        sample(forward, torch.ones(2, 4), 3, module=net, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.dropout.training
    assert net.depth.training


Pair = namedtuple("Pair", ["image", "scale"])


class Box:
    def __init__(self, image):
        self.image = image


IMAGE = torch.randn(2, 4)


@pytest.mark.parametrize(
    ("inputs", "take", "rows"),
    [
        ((IMAGE, torch.rand(2)), lambda inputs: inputs[0] * inputs[1][:, None], [6]),
        ({"image": IMAGE, "more": [torch.rand(2, 3)]}, lambda inputs: inputs["image"] + inputs["more"][0][:, :1], [6]),
        ([IMAGE, torch.tensor(2.0)], lambda inputs: inputs[0] * inputs[1], [2] * 3),
        ([IMAGE, torch.rand(3, 4)], lambda inputs: inputs[0] + inputs[1].mean(0), [2] * 3),
        ({"image": IMAGE, "names": ["a", "b"]}, lambda inputs: inputs["image"] + len(inputs["names"]), [2] * 3),
        (Pair(IMAGE, torch.rand(2)), lambda inputs: inputs.image * inputs.scale[:, None], [2] * 3),
        (Box(IMAGE), lambda inputs: inputs.image, [2] * 3),
        (IMAGE.to_sparse(), lambda inputs: inputs.to_dense(), [2] * 3),
        ({"image": IMAGE, "none": None}, lambda inputs: inputs["image"], [2] * 3),
    ],
)
def test_inputs_are_repeated_or_else_looped(inputs, take, rows):
    net = Net(take, p=1e-12)
    outputs = sample(net, inputs, 3, module=net)
    assert net.rows == rows
    expected = net.eval()(inputs)
    torch.testing.assert_close(outputs, {task: output.expand(3, *output.shape) for task, output in expected.items()})


def test_works_in_inference_mode_and_half_precision():
    net = Net().bfloat16()
    with torch.inference_mode():
        output = sample(net, torch.randn(2, 4, dtype=torch.bfloat16), 4, module=net, seed=0)["depth"]
    assert output.shape == (4, 2, 1)
    assert output.dtype is torch.bfloat16


def test_named_classes_are_passed_on():
    class Noise(nn.Module):
        def forward(self, x):
            return {"depth": x + torch.randn_like(x) if self.training else x}

    net = Noise().eval()
    assert sample(net, torch.zeros(2, 4), 3, module=net, also=(Noise,))["depth"].unique().numel() == 24


@pytest.mark.parametrize("samples", [0, -1])
def test_a_sample_is_needed(samples):
    net = Net()
    with pytest.raises(ValueError, match=f"samples should be at least 1: found {samples}"):
        sample(net, torch.ones(2, 4), samples, module=net)
    assert net.rows == []


def test_outputs_are_by_task():
    net = nn.Dropout(0.5)
    with pytest.raises(ValueError, match="forward should return outputs by task: found Tensor"):
        sample(net, torch.ones(2, 4), 3, module=net)


@pytest.mark.parametrize("pool", [lambda x: x.mean(), lambda x: x.mean(0)])
def test_outputs_without_the_rows_of_inputs_are_refused_unless_looped(pool):
    net = nn.Dropout(0.5)

    def forward(inputs):
        return {"depth": pool(net(inputs))}

    with pytest.raises(ValueError, match=r"a row for each of the 3 x 2 rows.*max_rows=1"):
        sample(forward, torch.ones(2, 4), 3, module=net)
    assert len(sample(forward, torch.ones(2, 4), 3, module=net, max_rows=1)["depth"]) == 3


def test_the_network_may_be_sampled_inside_mc_dropout():
    net = Net(p=0.5)
    with mc_dropout(net):
        sample(net, torch.ones(2, 4), 3, module=net)
        assert net.dropout.training
        assert not net.depth.training
