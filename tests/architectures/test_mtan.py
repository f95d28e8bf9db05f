import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_uncertainty.architectures import MTANAttention
from lightning_uncertainty.architectures._blocks import Bottleneck, conv_bn_relu
from lightning_uncertainty.architectures._mtan_attention import carry, shrink
from lightning_uncertainty.architectures.hard_sharing import HardSharing
from lightning_uncertainty.architectures.mtan import MTAN
from tests.architectures._architectures import check_shared, gradients_of

# Mask = sigmoid(W * u), attended = mask * p; computed independently, a 1x1 convolution in the place of all layers.
VECTOR = {
    "u": [[[[0.0, 0.1], [0.2, 0.3]], [[0.4, 0.5], [0.6, 0.7]]]],
    "p": [[[[0.3, 0.15], [0.0, -0.15]], [[-0.3, -0.45], [-0.6, -0.75]]]],
    "W": [[1.0, 0.5], [-1.0, 0.2]],
    "mask": [
        [
            [[0.549833997312478, 0.5866175789173301], [0.6224593312018546, 0.6570104626734988]],
            [[0.5199893401555818, 0.5], [0.48001065984441826, 0.46008511544443426]],
        ]
    ],
    "attended": [
        [
            [[0.16495019919374337, 0.08799263683759952], [0.0, -0.09855156940102482]],
            [[-0.15599680204667454, -0.22499999999999998], [-0.28800639590665095, -0.3450638365833257]],
        ]
    ],
}
TASKS = ("depth", "semantics", "normals")
PAIRS = [(3, 4), (6, 5)]


def stage(inputs, u, p, stride=2):
    return nn.Sequential(
        nn.Conv2d(inputs, u, 3, stride=stride, padding=1), nn.Tanh(), nn.Conv2d(u, p, 3, padding=1), nn.Tanh()
    )


def splittable(inputs, u, p, stride=2):
    *before, conv, act = stage(inputs, u, p, stride)
    return nn.Sequential(*before, nn.Sequential(conv, act))


def stages():
    return [splittable(2, 3, 4), splittable(4, 6, 5)]


def heads(tasks=TASKS, inputs=5):
    return {task: nn.Conv2d(inputs, i + 1, 1) for i, task in enumerate(tasks)}


def decoder():
    return [
        nn.Sequential(nn.Upsample(size=(9, 12)), splittable(5, 7, 4, stride=1)),
        nn.Sequential(nn.Upsample(size=(33, 47)), nn.Conv2d(4, 3, 3, padding=1)),
    ]


def with_decoder(**options):
    return MTAN(stages(), heads(inputs=3), [*PAIRS, (5, 4), (4, 3)], decoder=decoder(), **options)


class Listed(nn.Module):
    """The features of stages as a list, `last` of each: two or one."""

    def __init__(self, stages, last=2):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.last = last

    def forward(self, x):
        features = []
        for blocks in self.stages:
            within = []
            for block in blocks:
                x = block(x)
                within.append(x)
            features += within[-self.last :]
        return features


def touched(output, net):
    """Names of the parameters that get a gradient from an output that is not zero everywhere."""
    return {name for name, gradient in gradients_of(output, net).items() if gradient.any()}


def attention_that_is_one_convolution(W):
    attention = MTANAttention(2, 2, middle=2).double().eval()
    for norm in (attention.logits[0][1], attention.logits[2]):
        norm.eps = 0.0
    with torch.no_grad():
        # u is not negative: neither the identity nor ReLU changes it.
        attention.logits[0][0].weight.copy_(torch.eye(2)[..., None, None])
        attention.logits[1].weight.copy_(torch.tensor(W, dtype=torch.float64)[..., None, None])
    return attention


def saturate(net, bias):
    for attention in net.modules():
        if isinstance(attention, MTANAttention):
            nn.init.constant_(attention.logits[-1].bias, bias)


def test_mask_of_the_vector():
    mask = attention_that_is_one_convolution(VECTOR["W"])(torch.tensor(VECTOR["u"], dtype=torch.float64))
    torch.testing.assert_close(mask, torch.tensor(VECTOR["mask"], dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_attended_features_of_the_vector():
    net = MTAN(nn.Identity(), {"depth": nn.Identity()}, [(2, 2)]).double()
    net.attentions["depth"][0] = attention_that_is_one_convolution(VECTOR["W"])
    u, p, expected = (torch.tensor(VECTOR[name], dtype=torch.float64) for name in ("u", "p", "attended"))
    torch.testing.assert_close(net([u, p])["depth"], expected, rtol=1e-9, atol=1e-12)


def test_mask_is_two_convolutions_with_batch_statistics():
    attention = MTANAttention(3, 4, e_channels=2, middle=5).double()
    u, e = torch.randn(3, 3, 4, 5).double(), torch.randn(3, 2, 4, 5).double()
    first, last = attention.logits[0][0].weight[..., 0, 0], attention.logits[1].weight[..., 0, 0]

    def standardised(x):
        deviation = (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        return (x - x.mean((0, 2, 3), keepdim=True)) / deviation

    hidden = standardised(torch.einsum("mc,bchw->bmhw", first, torch.cat([u, e], 1))).clamp(min=0)
    expected = 1 / (1 + torch.exp(-standardised(torch.einsum("pm,bmhw->bphw", last, hidden))))
    torch.testing.assert_close(attention(u, e), expected)


def test_middle_is_a_quarter_and_at_least_one():
    assert MTANAttention(3, 16).logits[0][0].out_channels == 4
    assert MTANAttention(3, 2).logits[0][0].out_channels == 1


def test_wiring_of_two_stages_by_hand():
    net, x = MTAN(stages(), heads(), PAIRS).eval(), torch.randn(2, 2, 16, 24)
    (first, second), f = net.attentions["normals"], net.blocks[0]
    u_1 = net.backbone[0][:-1](x)
    p_1 = net.backbone[0][-1](u_1)
    u_2 = net.backbone[1][:-1](p_1)
    p_2 = net.backbone[1][-1](u_2)
    e = F.max_pool2d(f(first.logits(u_1).sigmoid() * p_1), 2)
    expected = net.heads["normals"](second.logits(torch.cat([u_2, e], 1)).sigmoid() * p_2)
    torch.testing.assert_close(net.predict(x)["normals"], expected, rtol=0, atol=0)


def test_wiring_of_a_decoder_upsamples_before_f():
    net, x = with_decoder().eval(), torch.randn(2, 2, 33, 47)
    u_1, p_1, u_2, p_2, u_3, p_3, u_4, p_4 = net.features(x)
    assert [list(u.shape[-2:]) for u in (u_1, u_2, u_3, u_4)] == [[17, 24], [9, 12], [9, 12], [33, 47]]
    masks, (f_2, f_3, f_4) = net.attentions["depth"], net.blocks
    e_2 = F.max_pool2d(f_2(masks[0](u_1) * p_1), 2, ceil_mode=True)
    e_3 = f_3(masks[1](u_2, e_2) * p_2)
    e_4 = f_4(F.interpolate(masks[2](u_3, e_3) * p_3, (33, 47), mode="bilinear"))
    expected = net.heads["depth"](masks[3](u_4, e_4) * p_4)
    torch.testing.assert_close(net(x)["depth"], expected, rtol=0, atol=0)


def test_blocks_are_plain_or_of_a_resnet():
    plain, residual = MTAN(stages(), heads(), PAIRS), MTAN(stages(), heads(), PAIRS, block=Bottleneck)
    assert [module.kernel_size for module in plain.blocks[0] if isinstance(module, nn.Conv2d)] == [(3, 3)]
    assert isinstance(residual.blocks[0], Bottleneck)
    assert len(plain.blocks) == len(residual.blocks) == 1
    x = torch.randn(2, 2, 16, 16)
    assert residual.blocks[0](torch.randn(2, 4, 8, 8)).shape == plain.blocks[0](torch.randn(2, 4, 8, 8)).shape
    assert residual(x)["depth"].shape == plain(x)["depth"].shape == (2, 1, 16, 16)


@pytest.mark.parametrize("tasks", [1, 2, 3])
@pytest.mark.parametrize("block", [conv_bn_relu, Bottleneck])
def test_masks_of_one_are_hard_sharing(tasks, block):
    trunk, last = stages(), heads(TASKS[:tasks])
    net, baseline = MTAN(trunk, last, PAIRS, block=block), HardSharing(trunk, last)
    saturate(net, 1e4)
    x = torch.randn(2, 2, 33, 47)
    outputs, expected = net(x), baseline(x)
    assert list(outputs) == list(expected) == list(TASKS[:tasks])
    for task in outputs:
        torch.testing.assert_close(outputs[task], expected[task], rtol=0, atol=0)


def test_masks_of_one_are_hard_sharing_through_a_decoder():
    net = with_decoder()
    saturate(net, 1e4)
    trunk = HardSharing([*net.backbone, *net.decoder], dict(net.heads))
    x = torch.randn(2, 2, 33, 47)
    for task, output in trunk(x).items():
        torch.testing.assert_close(net(x)[task], output, rtol=0, atol=0)


def test_masks_of_zero_leave_the_bias_of_heads():
    net = MTAN(stages(), heads(), PAIRS)
    saturate(net, -1e4)
    for task, output in net.predict(torch.randn(2, 2, 16, 16)).items():
        torch.testing.assert_close(output, net.heads[task].bias[:, None, None].expand_as(output), rtol=0, atol=0)


@pytest.mark.parametrize("build", [lambda: MTAN(stages(), heads(), PAIRS), with_decoder])
def test_attention_learns_from_exactly_its_own_task(build):
    net = build()
    outputs = net(torch.randn(2, 2, 33, 47))
    own = {task: {n for n, _ in net.named_parameters() if n.startswith(f"attentions.{task}.")} for task in TASKS}
    for task in TASKS:
        attentions = {name for name in touched(outputs[task], net) if name.startswith("attentions.")}
        assert attentions == own[task]
        assert attentions


@pytest.mark.parametrize("tasks", [1, 2, 3])
@pytest.mark.parametrize("block", [conv_bn_relu, Bottleneck])
def test_every_parameter_gets_a_gradient(tasks, block):
    net = MTAN(stages(), heads(TASKS[:tasks]), PAIRS, block=block)
    outputs = net(torch.randn(2, 2, 33, 47))
    every = set.union(*(touched(output, net) for output in outputs.values()))
    assert every == {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize("build", [lambda: MTAN(stages(), heads(), PAIRS), with_decoder])
def test_shared_parameters_are_those_of_several_tasks(build):
    net = build()
    outputs = net(torch.randn(2, 2, 33, 47))
    assert any(name.startswith("blocks.") for name in check_shared(outputs.values(), net))


def test_f_gets_the_sum_of_the_gradients_when_tasks_part_at_the_features():
    net, x = MTAN(stages(), heads(), PAIRS).double(), torch.randn(2, 2, 16, 16).double()
    features = net.features(x)
    copies = {task: [feature.detach().requires_grad_() for feature in features] for task in TASKS}
    sum(output.square().sum() for output in net.decode(copies, size=(16, 16)).values()).backward()
    parted = [parameter.grad for parameter in net.blocks.parameters()]
    outputs = net(x).values()
    by_task = [torch.autograd.grad(o.square().sum(), net.blocks.parameters(), retain_graph=True) for o in outputs]
    for grad, grads in zip(parted, zip(*by_task, strict=True), strict=True):
        torch.testing.assert_close(grad, sum(grads))
    assert all(copy.grad is not None for task in TASKS for copy in copies[task])


def test_gradients_are_exact():
    trunk = [nn.Sequential(nn.Conv2d(1, 2, 1), nn.Tanh()), nn.Sequential(nn.Conv2d(2, 2, 2, stride=2), nn.Tanh())]

    def block(inputs, outputs):
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.Tanh())

    net = MTAN(trunk, heads(TASKS[:2], 2), [(2, 2), (2, 2)], block=block).double()
    x = torch.randn(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda images: tuple(net(images).values()), (x,))


def test_a_list_of_pairs_equals_stages():
    trunk, x = stages(), torch.randn(2, 2, 33, 47)
    net = MTAN(trunk, heads(), PAIRS)
    listed = MTAN(Listed(trunk), dict(net.heads), PAIRS)
    listed.attentions, listed.blocks = net.attentions, net.blocks
    for task, output in net(x).items():
        torch.testing.assert_close(listed(x)[task], output, rtol=0, atol=0)


def test_a_list_of_single_features_equals_stages_that_are_not_split():
    trunk, x = stages(), torch.randn(2, 2, 33, 47)
    net = MTAN(trunk, heads(), [4, 5])
    listed = MTAN(Listed(trunk, last=1), dict(net.heads), [4, 5])
    listed.attentions, listed.blocks = net.attentions, net.blocks
    assert [feature.shape[1] for feature in net.features(x)] == [4, 5]
    for task, output in net(x).items():
        torch.testing.assert_close(listed(x)[task], output, rtol=0, atol=0)


def test_a_single_feature_is_both_u_and_p():
    net, x = MTAN(stages(), heads(), [4, (6, 5)]), torch.randn(2, 2, 16, 16)
    p_1, u_2, p_2 = net.features(x)
    twice = MTAN(nn.Identity(), dict(net.heads), [(4, 4), (6, 5)])
    twice.attentions, twice.blocks = net.attentions, net.blocks
    for task, output in net.predict(x).items():
        torch.testing.assert_close(twice.predict([p_1, p_1, u_2, p_2])[task], output, rtol=0, atol=0)


@pytest.mark.parametrize("build", [lambda: MTAN(stages(), heads(), PAIRS), with_decoder])
def test_features_stand_in_for_images(build):
    net, x = build(), torch.randn(2, 2, 33, 47)
    features = net.features(x)
    assert all(same is feature for same, feature in zip(net.features(features), features, strict=True))
    for task, output in net(x).items():
        torch.testing.assert_close(net(features, size=(33, 47))[task], output, rtol=0, atol=0)


def test_decoder_goes_on_from_a_list_of_features():
    trunk, x = stages(), torch.randn(2, 2, 33, 47)
    channels = [*PAIRS, (5, 4), (4, 3)]
    net = MTAN(Listed(trunk), heads(inputs=3), channels, decoder=decoder())
    assert [feature.shape[1] for feature in net.features(x)] == [3, 4, 6, 5, 5, 4, 4, 3]
    assert {task: output.shape[1] for task, output in net.predict(x).items()} == {t: i + 1 for i, t in enumerate(TASKS)}
    assert touched(net(x)["depth"], net) >= {name for name, _ in net.named_parameters() if name.startswith("backbone.")}


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", [(32, 48), (33, 47), (35, 45)])
@pytest.mark.parametrize("padding", [0, 1])
def test_stages_of_any_stride_and_size(stride, size, padding):
    second = nn.Sequential(nn.Conv2d(4, 6, 3, stride=stride, padding=padding), nn.Conv2d(6, 5, 1))
    net, x = MTAN([stages()[0], second], heads(), PAIRS), torch.randn(2, 2, *size)
    assert {tuple(output.shape[-2:]) for output in net(x).values()} == {size}
    assert {output.shape[-2:] for output in net.predict(x).values()} == {net.features(x)[-1].shape[-2:]}


@pytest.mark.parametrize(
    ("size", "smaller", "window"),
    [
        ((4, 6), (2, 3), (2, 2)),
        ((5, 7), (2, 3), (2, 2)),
        ((5, 7), (3, 4), (2, 2)),
        ((3, 5), (2, 3), (2, 2)),
        ((8, 12), (2, 3), (4, 4)),
        ((33, 47), (9, 12), (4, 4)),
        ((4, 7), (4, 4), (1, 2)),
    ],
)
def test_shrinking_takes_the_maximum_of_windows(size, smaller, window):
    x = torch.randn(2, 3, *size)
    by_hand = torch.empty(2, 3, *smaller)
    for i in range(smaller[0]):
        for j in range(smaller[1]):
            rows, columns = x[:, :, i * window[0] :][:, :, : window[0]], slice(j * window[1], (j + 1) * window[1])
            by_hand[..., i, j] = rows[..., columns].amax((-2, -1))
    torch.testing.assert_close(shrink(x, smaller), by_hand, rtol=0, atol=0)


def test_shrinking_to_the_same_size_changes_nothing():
    x = torch.randn(2, 3, 5, 7)
    assert shrink(x, (5, 7)) is x


@pytest.mark.parametrize("size", [(5, 7), (3, 3), (2, 7), (1, 1), (4, 5), (10, 14), (5, 9), (3, 9)])
def test_carried_features_have_exactly_the_size_asked_for(size):
    carried = carry(torch.full((2, 3, 5, 7), 2.0), nn.Conv2d(3, 4, 1), size)
    assert carried.shape == (2, 4, *size)
    torch.testing.assert_close(carried, carried[..., :1, :1].expand_as(carried))


def test_order_of_tasks_is_that_of_heads():
    net = MTAN(stages(), heads(TASKS[::-1]), PAIRS)
    assert list(net(torch.randn(2, 2, 16, 16))) == list(net.predictions) == list(TASKS[::-1])


class OwnForward(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("backbone", "channels", "message"),
    [
        ([nn.Identity(), splittable(2, 6, 5)], PAIRS, r"stage 0 .* the pair \(3, 4\): found Identity; give one number"),
        ([splittable(2, 3, 4), nn.Sequential(nn.Identity())], PAIRS, r"stage 1 .* \(6, 5\): found Sequential of 1"),
        ([splittable(2, 3, 4), OwnForward(*splittable(4, 6, 5))], PAIRS, "stage 1 .* found OwnForward of 3"),
        (stages(), PAIRS[:1], r"then of the decoder: found 1 for 2 \+ 0; correct channels"),
        (stages(), [], r"an entry for each stage, .*: found \[\]"),
        (stages(), [(3, 4), (6, 5, 4)], r"a pair \(C_u, C_p\) or one number: found \[\(3, 4\), \(6, 5, 4\)\]"),
        ([], PAIRS, "at least one"),
    ],
)
def test_stages_that_do_not_fit(backbone, channels, message):
    with pytest.raises(ValueError, match=message):
        MTAN(backbone, heads(), channels)


@pytest.mark.parametrize("trunk", [stages, lambda: Listed(stages())])
def test_decoder_needs_entries_of_channels(trunk):
    with pytest.raises(ValueError, match=r"then of the decoder: found 2 for . \+ 2"):
        MTAN(trunk(), heads(), PAIRS, decoder=decoder())


def test_decoder_that_cannot_be_split():
    with pytest.raises(ValueError, match=r"stage 2 .* \(5, 3\): found Conv2d"):
        MTAN(stages(), heads(), [*PAIRS, (5, 3)], decoder=[nn.Conv2d(5, 3, 1)])


def test_no_tasks():
    with pytest.raises(ValueError, match="MTAN should be for at least 1 task: found none"):
        MTAN(stages(), {}, PAIRS)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([(3, 4), (6, 9)], r"p of stage 1 should be \[B, 9, h, w\]: found \[2, 5, 4, 4\]"),
        ([(7, 4), (6, 5)], r"u of stage 0 should be \[B, 7, h, w\]: found \[2, 3, 8, 8\]"),
        ([4, 9], r"the feature of stage 1 should be \[B, 9, h, w\]: found \[2, 5, 4, 4\]"),
    ],
)
def test_wrong_channels(channels, message):
    net = MTAN(stages(), heads(), channels)
    with pytest.raises(ValueError, match=message):
        net(torch.randn(2, 2, 16, 16))


def test_wrong_number_of_features():
    x = torch.randn(2, 2, 16, 16)
    net = MTAN(Listed(stages(), last=1), heads(), PAIRS)
    with pytest.raises(ValueError, match=r"2 stages should have 4 features, .* \[\(3, 4\), \(6, 5\)\]: found 2"):
        net(x)
    with pytest.raises(ValueError, match="found 3; correct channels"):
        net(MTAN(stages(), heads(), PAIRS).features(x)[:3])


def test_wrong_features_are_found_before_the_decoder_runs():
    net = MTAN(Listed(stages(), last=1), heads(inputs=3), [*PAIRS, (5, 4), (4, 3)], decoder=decoder())
    net.decoder[0].register_forward_pre_hook(lambda *_: pytest.fail("the decoder runs"))
    with pytest.raises(ValueError, match=r"2 stages should have 4 features, .*: found 2"):
        net(torch.randn(2, 2, 16, 16))


def test_u_and_p_of_two_sizes():
    trunk = [nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 1, stride=2))]
    with pytest.raises(ValueError, match=r"u and p of stage 0 .* found \[1, 3, 8, 8\] and \[1, 4, 4, 4\]"):
        MTAN(trunk, heads(inputs=4), [(3, 4)])(torch.randn(1, 2, 8, 8))


def test_features_without_a_size():
    with pytest.raises(ValueError, match=r"the feature of stage 0 should be \[B, 4, h, w\]: found \[2, 4\]"):
        MTAN(nn.Identity(), heads(inputs=4), [4])([torch.randn(2, 4)])
