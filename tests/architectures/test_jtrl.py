import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_uncertainty.architectures.jtrl import JTRL, _Upsampling, shuffle
from tests.architectures._architectures import check_shared

OUTPUTS = {"depth": 1, "semantics": 3}


def stages(channels, stride=2):
    inputs = [3, *channels[:-1]]
    return [nn.Conv2d(i, o, 3, stride=stride, padding=1) for i, o in zip(inputs, channels, strict=True)]


def build(scales=3, width=8, outputs=None, **options):
    torch.manual_seed(0)
    channels = [3 + scale for scale in range(scales)]
    return JTRL(stages(channels, **options), channels, outputs or OUTPUTS, width=width).double()


def images(*size, seed=0):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def up(module, x, size):
    """Return upsampled features, written out."""
    convolved = torch.cat([F.conv2d(x, c.weight, c.bias, padding=c.kernel_size[0] // 2) for c in module.convs], 1)
    b, c, h, w = convolved.shape
    shuffled = convolved.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)
    return F.interpolate(shuffled, size=size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_tasks_decode_in_turns_from_coarse_to_fine(size):
    net, x = build(scales=3).eval(), images(*size)
    fine = net.backbone[0](x)
    middle = net.backbone[1](fine)
    coarse = net.backbone[2](middle)
    a = net.start.first(coarse)
    b = net.start.second(torch.cat([a, coarse], 1))
    expected = {"depth_1": a, "semantics_1": b}
    for scale, skip, step in zip(net.scales, (middle, fine), ("_2", ""), strict=True):
        a, b = (up(module, task, skip.shape[-2:]) for module, task in zip(scale.upsampling, (a, b), strict=True))
        a = scale.first.decoder(torch.cat([scale.first.attention(a, b), skip], 1))
        b = scale.second.decoder(torch.cat([scale.second.attention(a, b), skip], 1))
        expected |= {f"depth{step}": a, f"semantics{step}": b}
    predictions = net.predict(x)
    assert list(predictions) == list(expected)
    for name, features in expected.items():
        torch.testing.assert_close(predictions[name], net.heads[name](features))


def changed(before, after):
    return [name for name in before if not torch.equal(before[name], after[name])]


ORDER = ["depth_1", "semantics_1", "depth_2", "semantics_2", "depth_3", "semantics_3", "depth", "semantics"]


def steps(net):
    return [net.start.first, net.start.second, *(s for scale in net.scales for s in (scale.first, scale.second))]


@pytest.mark.parametrize("step", range(8))
def test_a_step_changes_those_that_follow_it_and_none_before(step):
    net, x = build(scales=4, width=32).eval(), images(33, 47)  # wide enough for some units to be active
    with torch.no_grad():
        before = net(x)
        next(steps(net)[step].parameters()).mul_(1.5)
        assert changed(before, net(x)) == ORDER[step:]


@pytest.mark.parametrize("name", ORDER)
def test_predictions_are_passed_to_nobody(name):
    net, x = build(scales=4).eval(), images(32, 32)
    with torch.no_grad():
        before = net(x)
        net.heads[name].bias.add_(1)
        assert changed(before, net(x)) == [name]


@pytest.mark.parametrize("scales", [2, 3, 4])
def test_every_scale_has_predictions_and_the_last_bear_the_names_of_the_tasks(scales):
    net = build(scales=scales)
    steps = [f"_{k}" for k in range(1, scales)] + [""]
    names = {f"{task}{step}": task for step in steps for task in OUTPUTS}
    assert list(net.predictions.items()) == list(names.items())
    predictions = net(images(33, 47))
    assert list(predictions) == list(names)
    assert {name: tuple(p.shape) for name, p in predictions.items()} == {
        name: (2, OUTPUTS[task], 33, 47) for name, task in names.items()
    }
    assert net.by_task() == [[f"{task}{step}" for step in steps] for task in OUTPUTS]


def test_the_first_task_of_the_mapping_decodes_first():
    net = build(scales=2, outputs={"semantics": 3, "depth": 1})
    assert list(net.predict(images(16, 16))) == ["semantics_1", "depth_1", "semantics", "depth"]


@pytest.mark.parametrize(("size", "stride"), [((33, 47), 2), ((12, 8), 1), ((40, 31), 3), ((8, 8), 2)])
def test_predictions_have_the_size_of_the_features_whatever_the_strides(size, stride):
    net, x = build(scales=3, stride=stride), images(*size)
    sizes, features = [], x
    for stage in net.backbone:
        features = stage(features)
        sizes.append(features.shape[-2:])
    shapes = [prediction.shape[-2:] for prediction in net.predict(x).values()]
    assert shapes == [size for size in reversed(sizes) for _ in OUTPUTS]


def test_width_is_halved_at_every_scale():
    net = build(scales=4, width=16)
    assert [head.in_channels for head in net.heads.values()] == [16, 16, 8, 8, 4, 4, 2, 2]
    default = JTRL(stages([4, 4]), [4, 4], OUTPUTS)
    assert [head.in_channels for head in default.heads.values()] == [256, 256, 128, 128]


def test_features_may_be_given_in_place_of_images():
    net, x = build(scales=2).eval(), images(16, 16)
    fine = net.backbone[0](x)
    given = net([fine, net.backbone[1](fine)])
    for name, prediction in net.predict(x).items():
        torch.testing.assert_close(given[name], prediction)


@pytest.mark.parametrize("scales", [2, 3, 4])
def test_shared_are_the_parameters_of_both_final_predictions(scales):
    net = build(scales=scales)
    predictions = net(images(33, 47))
    assert check_shared([predictions[task] for task in OUTPUTS], net)


@pytest.mark.parametrize("scales", [2, 4])
def test_every_parameter_gets_a_gradient_from_all_predictions(scales):
    net = build(scales=scales)
    sum(prediction.square().sum() for prediction in net(images(33, 47)).values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_gradient_equals_finite_differences():
    net = build(scales=2, width=2).eval()  # fixed statistics: the samples are independent
    x = images(5, 4)[:1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(net(x).values()), x)


@pytest.mark.parametrize(
    ("tasks", "found"), [([], "none"), (["depth"], "depth"), (["depth", "normals", "edges"], "depth, normals, edges")]
)
def test_it_is_for_two_tasks(tasks, found):
    message = f"JTRL should be for two tasks: found {found}; use PADNet, PAPNet or MTAN for more"
    with pytest.raises(ValueError, match=f"^{message}$"):
        JTRL(stages([4, 4]), [4, 4], dict.fromkeys(tasks, 1))


@pytest.mark.parametrize("channels", [[], [4]])
def test_one_scale_is_too_few(channels):
    with pytest.raises(ValueError, match=f"at least two entries, one for each scale: found {len(channels)};"):
        JTRL(nn.Identity(), channels, OUTPUTS)


@pytest.mark.parametrize(("width", "given"), [(100, 96), (4, 8), (0, 8), (-8, 8), (13, 16)])
def test_width_that_cannot_be_halved_often_enough_is_refused(width, given):
    with pytest.raises(ValueError, match=f"multiple of 8, .* 3 times .* 4 scales: found {width}; give {given}, for"):
        JTRL(stages([4] * 4), [4] * 4, OUTPUTS, width=width)


@pytest.mark.parametrize("tasks", [("depth", "depth_1"), ("depth_2", "depth")])
def test_a_task_with_the_name_of_a_prediction_is_refused(tasks):
    with pytest.raises(ValueError, match=f"<task>_1 to <task>_2: found {' and '.join(tasks)}; rename a task"):
        build(scales=3, outputs=dict.fromkeys(tasks, 1))


def test_a_name_that_only_resembles_a_prediction_is_accepted():
    assert len(build(scales=3, outputs={"depth": 1, "depth_3": 1}).predictions) == 6


def test_channels_become_places_as_by_pixel_shuffle():
    x = torch.randn(2, 12, 5, 7)
    torch.testing.assert_close(shuffle(x), F.pixel_shuffle(x, 2), rtol=0, atol=0)
    sequence, volume = torch.arange(4.0).reshape(1, 2, 2), torch.arange(8.0).reshape(1, 8, 1, 1, 1)
    assert shuffle(sequence).tolist() == [[[0.0, 2.0, 1.0, 3.0]]]
    assert shuffle(volume).tolist() == [[[[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0, 7.0]]]]]


@pytest.mark.parametrize(("dimensions", "kernels"), [(1, 4), (2, 8), (3, 16)])
def test_upsampling_doubles_every_size_and_halves_the_channels(dimensions, kernels):
    upsampling = _Upsampling(16, dimensions)
    size = (5, 4, 3)[:dimensions]
    assert upsampling(torch.randn(2, 16, *size)).shape == (2, 8, *(2 * length for length in size))
    assert [conv.out_channels for conv in upsampling.convs] == [kernels] * 4


def test_a_sequence_needs_twice_the_multiple_of_width():
    with pytest.raises(ValueError, match=r"width should be a multiple of 4, .*: found 6; give 8"):
        JTRL([nn.Conv1d(3, 4, 3), nn.Conv1d(4, 6, 3)], [4, 6], OUTPUTS, width=6, dimensions=1)


def test_features_that_do_not_fit_the_channels_are_named():
    net = JTRL(stages([4, 6]), [4, 8], OUTPUTS, width=4)
    with pytest.raises(ValueError, match=r"stage 1 should be \[B, 8, h, w\]: found \[2, 6, 4, 4\]; correct channels"):
        net(images(16, 16).float())
    with pytest.raises(ValueError, match=r"2 stages, .*\[4, 8\]: found 1"):
        net([torch.ones(2, 4, 8, 8)])
