from functools import partial

import pytest
import torch
from torch import nn

from lightning_uncertainty.architectures import pap_net
from lightning_uncertainty.architectures.pap_net import PAPNet, Propagation, affinity, diffuse, mix
from tests._numbers import float64
from tests.architectures._architectures import check_shared, one_feature

TASKS = {"depth": 1, "semantics": 5, "normals": 3}
X = [[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], [[2.0, 1.0], [-1.0, 0.5], [0.0, 1.0]]]
M = [
    [
        [0.47304109310346387, 0.1740220929820305, 0.3529368139145055],
        [0.1740220929820305, 0.47304109310346387, 0.3529368139145055],
        [0.2993743378107506, 0.2993743378107506, 0.40125132437849875],
    ],
    [
        [0.5626699068175337, 0.1136010949668373, 0.32372899821562895],
        [0.1136010949668373, 0.5626699068175337, 0.32372899821562895],
        [0.26751634876489006, 0.26751634876489006, 0.4649673024702198],
    ],
]
LOGITS = [0.2, -0.1]
ALPHA = [0.574442516811659, 0.425557483188341]
MIXED = [
    [0.5111833054887801, 0.14830948513495715, 0.34050720937626267],
    [0.14830948513495715, 0.5111833054887801, 0.34050720937626267],
    [0.28581693217295245, 0.28581693217295245, 0.42836613565409504],
]
DIFFUSED = [
    [0.992327846809146, 0.03244478690005537],
    [0.024772633709201394, 1.9675552130999445],
    [0.9856460986849868, 1.0],
]
FIXED_POINT = [
    [0.992327750640536, 0.032444980686968154],
    [0.024772731327504283, 1.9675550193130316],
    [0.9856460974681349, 0.9999999999999999],
]

exactly = partial(torch.testing.assert_close, rtol=0, atol=0)
closely = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


def as_images(x):
    """Return features `[T, n, C]` as `[1, T, C, 1, n]`."""
    return x.mT[None, :, :, None]


def test_affinities_of_the_worked_example():
    closely(affinity(float64(X)), float64(M))


def test_rows_of_affinities_sum_to_one():
    x = torch.randn(2, 3, 7, 4, dtype=torch.float64)
    closely(affinity(x).sum(-1), torch.ones(2, 3, 7, dtype=torch.float64))


def test_affinities_do_not_depend_on_the_length_of_features():
    x = torch.randn(7, 4, dtype=torch.float64)
    closely(affinity(x * torch.rand(7, 1, dtype=torch.float64).add(0.1)), affinity(x))


def test_pixels_without_features_resemble_all_alike():
    x = torch.zeros(4, 3, requires_grad=True)
    exactly(affinity(x), torch.full((4, 4), 0.25))
    affinity(x)[0, 0].backward()
    assert x.grad.isfinite().all()


def test_mixture_of_the_worked_example():
    weights = float64([LOGITS, [-5.0, 5.0]]).softmax(-1)
    closely(weights[0], float64(ALPHA))
    closely(mix(float64(M), weights)[0], float64(MIXED))


def test_mixture_is_a_weighted_sum_for_every_image():
    affinities, weights = torch.rand(2, 3, 4, 4), torch.rand(3, 3)
    mixed = mix(affinities, weights)
    for image in range(2):
        for task in range(3):
            expected = sum(weights[task, other] * affinities[image, other] for other in range(3))
            torch.testing.assert_close(mixed[image, task], expected)


def test_diffusion_of_the_worked_example():
    closely(diffuse(float64(X[0]), float64(MIXED), beta=0.05, iterations=3), float64(DIFFUSED))


def test_diffusion_converges_to_the_solution_of_a_linear_system():
    limit = diffuse(float64(X[0]), float64(MIXED), beta=0.05, iterations=30)
    closely(limit, float64(FIXED_POINT))
    closely(limit, torch.linalg.solve(torch.eye(3) - 0.05 * float64(MIXED), 0.95 * float64(X[0])))


def test_diffusion_leaves_constant_features_alone():
    closely(diffuse(torch.ones(3, 2, dtype=torch.float64), float64(MIXED), beta=0.7), torch.ones(3, 2).double())


def test_propagation_of_the_worked_example():
    propagation = Propagation(2).double()
    propagation.logits.data[0] = float64(LOGITS)
    closely(propagation(as_images(float64(X)))[0, 0, :, 0].mT, float64(DIFFUSED))


def test_propagation_is_over_pixels_whatever_their_order():
    propagation = Propagation(3).double()
    propagation.logits.data.normal_()
    features = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    order = torch.randperm(30)
    shuffled = features.flatten(-2)[..., order].reshape(features.shape)
    closely(propagation(shuffled).flatten(-2), propagation(features).flatten(-2)[..., order])


def test_images_do_not_affect_each_other():
    propagation = Propagation(2, max_pixels=9).double()
    features = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64)
    closely(propagation(features)[1:2], propagation(features[1:2]))


@pytest.mark.parametrize("tasks", [2, 3])
def test_at_first_affinities_of_all_tasks_count_alike(tasks):
    torch.testing.assert_close(Propagation(tasks).weights(), torch.full((tasks, tasks), 1 / tasks))
    propagation = Propagation(tasks)
    propagation.logits.data.normal_()
    torch.testing.assert_close(propagation.weights().sum(-1), torch.ones(tasks))


def test_the_defaults_are_the_published_ones():
    features = torch.randn(1, 2, 4, 3, 5, dtype=torch.float64)
    x = features.flatten(-2).mT
    expected = diffuse(x, affinity(x).mean(1, keepdim=True), beta=0.05, iterations=3)
    closely(Propagation(2).double()(features).flatten(-2).mT, expected)


@pytest.mark.parametrize("max_pixels", [1024, 12, 1])
def test_with_beta_zero_features_are_left_alone(max_pixels):
    features = torch.randn(2, 3, 4, 7, 9)
    exactly(Propagation(3, beta=0.0, max_pixels=max_pixels)(features), features)


@pytest.mark.parametrize(
    ("size", "max_pixels", "pixels"),
    [((6, 8), 48, 48), ((6, 8), 47, 12), ((7, 9), 20, 20), ((7, 9), 19, 9), ((1, 50), 4, 4), ((5, 5), 1, 1)],
)
def test_affinities_are_between_at_most_max_pixels(monkeypatch, size, max_pixels, pixels):
    shapes = []

    def spied(x):
        shapes.append(tuple(affinity(x).shape))
        return affinity(x)

    monkeypatch.setattr(pap_net, "affinity", spied)
    features = torch.randn(2, 3, 4, *size)
    assert Propagation(3, max_pixels=max_pixels)(features).shape == features.shape
    assert shapes == [(2, 3, pixels, pixels)]
    assert pixels <= max_pixels


def test_propagation_over_averages_adds_their_change():
    features = torch.randn(1, 2, 4, 4, 6, dtype=torch.float64)
    averages = features.unflatten(-1, (3, 2)).unflatten(-3, (2, 2)).mean((-3, -1))
    change = Propagation(2).double()(averages) - averages
    enlarged = nn.Upsample(scale_factor=2, mode="bilinear")(change[0])[None]
    closely(Propagation(2, max_pixels=6).double()(features), features + enlarged)


def test_odd_sizes_count_as_even_ones_whose_borders_repeat():
    propagation = Propagation(2, max_pixels=6).double()
    features = torch.randn(1, 2, 4, 3, 5, dtype=torch.float64)
    even = nn.ReplicationPad2d((0, 1, 0, 1))(features[0])[None]
    closely(propagation(features), propagation(even)[..., :3, :5])


@pytest.mark.parametrize("max_pixels", [1024, 6])
def test_a_sequence_is_an_image_of_one_row_and_an_image_a_volume_of_one_slice(max_pixels):
    propagation = Propagation(2, max_pixels=max_pixels).double()
    for size in ((13,), (5, 7)):
        features = torch.randn(2, 2, 4, *size, dtype=torch.float64)
        closely(propagation(features), propagation(features.unsqueeze(3)).squeeze(3))


@pytest.mark.parametrize("size", [(13,), (5, 7), (3, 5, 7)])
def test_averages_are_there_in_bfloat16(size):
    features = torch.randn(2, 2, 4, *size)
    found = Propagation(2, max_pixels=4).bfloat16()(features.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), Propagation(2, max_pixels=4)(features), rtol=0.02, atol=0.02)


def test_what_is_kept_for_the_gradient_is_twice_the_affinities():
    kept = {}

    def note(tensor):
        if tensor.numel() >= 2 * 3 * 64**2:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        propagated = Propagation(3, max_pixels=64)(torch.randn(2, 3, 4, 8, 8, requires_grad=True))
    assert sum(kept.values()) == 2 * (3 * 2 * 64**2) * 4
    propagated.sum().backward()


@pytest.mark.parametrize("max_pixels", [6, 4])
def test_gradient_of_the_propagation(max_pixels):
    propagation = Propagation(2, beta=0.4, max_pixels=max_pixels).double()
    features = torch.randn(1, 2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: propagation(x), (features, propagation.logits))


def test_final_heads_take_propagated_features_of_half_the_width():
    net = PAPNet(one_feature(), 8, TASKS, width=8).eval()
    net.propagation.logits.data.normal_()
    features = torch.randn(2, 8, 3, 4)
    x = torch.stack([net.halves[task](net.task_features[task](features)) for task in TASKS], dim=1)
    assert x.shape == (2, 3, 4, 3, 4)
    propagated = net.propagation(x)
    predictions = net.predict([features])
    for position, task in enumerate(TASKS):
        torch.testing.assert_close(predictions[task], net.heads[task](propagated[:, position]))


@pytest.mark.parametrize("max_pixels", [1024, 4])
def test_with_beta_zero_tasks_do_not_meet(max_pixels):
    net = PAPNet(one_feature(), 8, TASKS, width=8, propagation=partial(Propagation, beta=0.0, max_pixels=max_pixels))
    features = torch.randn(2, 8, 3, 4)
    predictions = net.eval().predict([features])
    for task in TASKS:
        alone = net.heads[task](net.halves[task](net.task_features[task](features)))
        torch.testing.assert_close(predictions[task], alone)


@pytest.mark.parametrize("count", [2, 3])
def test_shared_parameters_are_those_of_several_final_predictions(count):
    tasks = dict(list(TASKS.items())[:count])
    net = PAPNet(one_feature(), 8, tasks, width=8)
    predictions = net(torch.randn(2, 3, 9, 13))
    check_shared([predictions[task] for task in tasks], net)


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="width should be even: found 9; affinities"):
        PAPNet(one_feature(), 8, TASKS, width=9)


@pytest.mark.parametrize(
    ("tasks", "options", "match"),
    [
        (1, {}, "tasks should be at least 2: found 1"),
        (2, {"beta": 1.0}, r"beta should be in \[0, 1\): found 1.0"),
        (2, {"beta": -0.1}, r"beta should be in \[0, 1\): found -0.1"),
        (2, {"beta": float("nan")}, r"beta should be in \[0, 1\): found nan"),
        (2, {"iterations": 0}, "iterations and max_pixels should be positive: found 0 and 1024"),
        (2, {"max_pixels": 0}, "iterations and max_pixels should be positive: found 3 and 0"),
    ],
)
def test_numbers_out_of_range_are_refused(tasks, options, match):
    with pytest.raises(ValueError, match=match):
        Propagation(tasks, **options)
