import math

import pytest
import torch
from torch import nn

from lightning_uncertainty.tasks import HeteroscedasticHead, Rescale


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 1, 3), (5, 1, 3, 2)])
def test_one_number_for_all(shape):
    output = torch.randn(shape)
    torch.testing.assert_close(Rescale(4.0, 2.5)(output), 4.0 + 2.5 * output)


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 3), (5, 3, 3, 3)])
def test_one_number_for_each_channel(shape):
    mean, std = [1.0, -2.0, 30.0], [0.5, 1.0, 2.0]
    output = torch.randn(shape)
    rescaled = Rescale(mean, std)(output)
    for channel in range(3):
        torch.testing.assert_close(rescaled[:, channel], mean[channel] + std[channel] * output[:, channel])


def test_undoes_standardisation():
    labels = torch.tensor([[3000.0, 0.1], [4207.0, 0.4], [5100.0, 0.2]])
    mean, std = labels.mean(0), labels.std(0)
    rescale = Rescale(mean.tolist(), std.tolist())
    torch.testing.assert_close(rescale((labels - mean) / std), labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_computes_in_float32(dtype):
    head = nn.Sequential(nn.Identity(), Rescale(4207.0, 802.0)).to(dtype)
    output = torch.tensor([[0.0], [0.25]], dtype=dtype)
    assert head(output).tolist() == [[4207.0], [4407.5]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(output).tolist() == [[4207.0], [4407.5]]


def test_float64_stays():
    output = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert Rescale(1.0, 2.0).double()(output).dtype is torch.float64
    assert Rescale(1.0, 2.0)(output).dtype is torch.float64


def test_constants_are_no_parameters_and_travel_in_checkpoints():
    rescale = Rescale([1.0, 2.0], [3.0, 4.0])
    assert list(rescale.parameters()) == []
    other = Rescale([0.0, 0.0], [1.0, 1.0])
    other.load_state_dict(rescale.state_dict())
    assert other(torch.ones(1, 2)).tolist() == [[4.0, 6.0]]


def test_keeps_its_own_copy_of_the_numbers():
    mean = torch.tensor([1.0])
    rescale = Rescale(mean, torch.tensor([2.0]))
    mean.fill_(100.0)
    assert rescale(torch.zeros(1, 1)).item() == 1.0


def test_gradient_is_scaled_by_the_deviation():
    output = torch.zeros(3, 1, requires_grad=True)
    Rescale(5.0, 7.0)(output).sum().backward()
    assert output.grad.flatten().tolist() == [7.0, 7.0, 7.0]


@pytest.mark.parametrize(
    ("mean", "std", "match"),
    [
        ([1.0, 2.0], [1.0], "of one length: found 2 and 1"),
        (float("nan"), 1.0, "mean should be finite"),
        (float("inf"), 1.0, "mean should be finite"),
        (1.0, 0.0, "std positive"),
        (1.0, -1.0, "std positive"),
        (1.0, float("nan"), "std positive"),
        ([1.0, 1.0], [1.0, float("inf")], "std positive"),
    ],
)
def test_numbers_that_make_no_sense(mean, std, match):
    with pytest.raises(ValueError, match=match):
        Rescale(mean, std)


def test_made_on_the_meta_device_it_finds_its_numbers_again():
    with torch.device("meta"):
        head = Rescale(mean=[4.0, 5.0], std=torch.tensor([2.0, 3.0], device="cpu"))
    assert head.mean.is_meta
    head.to_empty(device="cpu").mean.fill_(7.0)
    head.reset_parameters()
    assert head(torch.ones(1, 2)).tolist() == [[6.0, 8.0]]


# -- HeteroscedasticHead -----------------------------------------------------------------------------------------------


def two_heads(**options):
    return HeteroscedasticHead(nn.Linear(4, 3), nn.Linear(4, 3), **options)


def test_means_come_first_and_log_variances_begin_at_the_start():
    head, features = two_heads(start=-1.5), torch.randn(5, 4)
    output = head(features)
    torch.testing.assert_close(output[:, :3], head.mean(features))
    torch.testing.assert_close(output[:, 3:], head.log_variance(features) - 1.5)


def test_channels_are_second_in_images():
    head = HeteroscedasticHead(nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1))
    features = torch.randn(3, 4, 5, 6)
    assert head(features).shape == (3, 4, 5, 6)
    torch.testing.assert_close(head(features)[:, 2:], head.log_variance(features))


def test_means_in_grams_stay_float32_in_a_half_model():
    mean = nn.Sequential(nn.Linear(4, 1), Rescale(4207.0, 802.0))
    head = HeteroscedasticHead(mean, nn.Linear(4, 1), start=13.4).bfloat16()
    output = head(torch.zeros(2, 4, dtype=torch.bfloat16))
    grams = 4207.0 + 802.0 * mean[0].bias.float()
    assert output.dtype is torch.float32
    torch.testing.assert_close(output[0], torch.cat([grams, 13.4 + head.log_variance.bias.float()]))
    assert head.steps.dtype is torch.float32


def test_means_in_grams_stay_float32_under_autocast():
    head = HeteroscedasticHead(Rescale(4207.0, 802.0), nn.Identity(), start=0.001)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = head(torch.tensor([[0.25]]))
    torch.testing.assert_close(output, torch.tensor([[4407.5, 0.251]]))


def test_float64_stays_in_both():
    assert two_heads(burn_in=1).double()(torch.randn(2, 4).double()).dtype is torch.float64


def test_burn_in_holds_the_start_for_so_many_training_passes():
    head, features = two_heads(start=0.7, burn_in=2), torch.randn(5, 4)
    for step in range(4):
        output = head(features)
        held = torch.equal(output[:, 3:], torch.full((5, 3), 0.7))
        assert held == (step < 2)
        head.zero_grad()
        output.sum().backward()
        gradient = head.log_variance.weight.grad
        assert gradient is not None
        assert gradient.any() == (step >= 2)
        assert head.mean.weight.grad.any()


def test_evaluation_within_burn_in_has_the_constant_and_does_not_count():
    head, features = two_heads(start=0.7, burn_in=1), torch.randn(5, 4)
    for _ in range(3):
        head.eval()
        assert head(features)[:, 3:].eq(0.7).all()
        head.train()
        with torch.no_grad():
            assert head(features)[:, 3:].eq(0.7).all()
    head(features)
    assert not head.eval()(features)[:, 3:].eq(0.7).any()


def test_burn_in_goes_on_where_a_checkpoint_left_it():
    head, features = two_heads(burn_in=3), torch.randn(5, 4)
    head(features)
    head(features)
    resumed = two_heads(burn_in=3)
    resumed.load_state_dict(head.state_dict())
    assert not resumed(features)[:, 3:].any()
    assert resumed(features)[:, 3:].all()


def test_burn_in_is_counted_beyond_what_half_precision_counts():
    head, features = two_heads(start=0.7, burn_in=2051).to(torch.bfloat16), torch.randn(5, 4).bfloat16()
    head.steps.fill_(2049)
    assert [bool(head(features)[:, 3:].eq(0.7).all()) for _ in range(4)] == [True, True, False, False]


def test_a_count_of_whole_numbers_from_before_is_taken():
    head = two_heads(burn_in=3)
    head.load_state_dict({**head.state_dict(), "steps": torch.tensor(2)})
    assert head.steps.dtype is torch.float32
    assert head.steps == 2


def test_burn_in_begins_anew_after_a_meta_device():
    with torch.device("meta"):
        head = two_heads(start=0.7, burn_in=1)
    head.to_empty(device="cpu").steps.fill_(9)
    for part in (head, head.mean, head.log_variance):
        part.reset_parameters()
    features = torch.randn(5, 4)
    assert head(features)[:, 3:].eq(0.7).all()
    assert not head(features)[:, 3:].eq(0.7).any()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inductor's own
def test_the_last_pass_of_a_compiled_burn_in_has_the_gradient_of_an_eager_one():
    head, features = two_heads(burn_in=2), torch.randn(5, 4)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager_decomp_partition")
    for step in range(3):
        head.zero_grad()
        compiled(features).sum().backward()
        assert head.log_variance.weight.grad.any() == (step >= 2)
    assert head.steps == 3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"burn_in": -1}, "burn_in should be .* found -1"),
        ({"burn_in": 1 << 25}, "from 0 to 16_777_216: found 33554432"),
        ({"start": -math.inf}, "start should be a finite .* -inf"),
    ],
)
def test_a_burn_in_or_start_that_makes_no_sense(options, match):
    with pytest.raises(ValueError, match=match):
        two_heads(**options)


def test_modules_of_different_shapes_are_both_named():
    head = HeteroscedasticHead(nn.Linear(4, 3), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"found \[5, 3\] and \[5, 1\]"):
        head(torch.randn(5, 4))
