import copy
import io
import pickle

import pytest
import torch
from torch import nn

from tests.weightings._properties import (
    WEIGHTINGS,
    assert_same,
    draw_losses,
    everywhere,
    make_tasks,
    some,
    train,
    train_step,
    vectors,
)

COUNTS = [1, 2, 40]
MIRRORS = ("log_variance", "last_offset", "present_since")
HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(params=WEIGHTINGS, ids=lambda listed: listed.name)
def listed(request):
    return request.param


def own_state(weighting):
    """All vectors but those that say how the others were at the latest training step."""
    return {name: vector for name, vector in vectors(weighting).items() if name.rpartition(".")[2] not in MIRRORS}


@pytest.mark.parametrize("count", COUNTS)
def test_total_is_a_finite_scalar(listed, count):
    for weighted in train(listed.bind(count), 3):
        assert weighted.total.shape == ()
        assert weighted.total.isfinite()
        assert weighted.total.requires_grad
        assert weighted.weights.shape == (count,)
        assert weighted.weights.isfinite().all()
        if weighted.log_variances is not None:
            assert weighted.log_variances.shape == (count,)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("training", [True, False])
def test_weights_are_the_gradient(listed, count, training):
    weighting = listed.bind(count)
    for step in range(4):  # in evaluation: nothing started, then some tasks, then more
        losses, present = draw_losses(count, step).requires_grad_(), some(count, step)
        weighting.train(training)
        weighted = weighting(losses, present)
        (gradient,) = torch.autograd.grad(weighted.total, losses)
        assert_same(weighted.weights, gradient, rtol=1e-6, atol=0.0)
        assert (gradient[present] > 0).all()
        assert (gradient[~present] == 0).all()
        weighting.train()
        train_step(weighting, losses.detach(), present)


def test_what_is_reported_is_detached_and_stays(listed):
    weighting = listed.bind(3)
    weighted = train(weighting, 1)[0]
    kept = copy.deepcopy(weighted.weights), copy.deepcopy(weighted.log_variances)
    train(weighting, 3, seed=50)
    assert not weighted.weights.requires_grad
    assert_same(weighted.weights, kept[0])
    if weighted.log_variances is not None:
        assert not weighted.log_variances.requires_grad
        assert_same(weighted.log_variances, kept[1])


@pytest.mark.parametrize("absent_loss", [0.0, 1e30, -5.0, 1e-30])
@pytest.mark.parametrize("steps", [0, 3])
def test_absent_tasks_neither_contribute_nor_change(listed, absent_loss, steps):
    weighting = listed.bind(5)
    train(weighting, steps)
    present = torch.tensor([True, False, True, False, False])
    reference = train_step(copy.deepcopy(weighting), draw_losses(5, 9), present)
    before = own_state(weighting)
    weighted = train_step(weighting, torch.where(present, draw_losses(5, 9), absent_loss), present)
    assert_same(weighted.total, reference.total)
    assert_same(weighted.weights, reference.weights)
    assert_same(weighted.log_variances, reference.log_variances)
    assert (weighted.weights[~present] == 0).all()
    for name, vector in own_state(weighting).items():
        assert_same(vector[~present], before[name][~present])


def test_absent_tasks_are_as_if_they_were_not_registered(listed):
    tasks = make_tasks(5)
    weighting, smaller = listed.bind(tasks), listed.bind({name: tasks[name] for name in ("task0", "task2")})
    present = torch.tensor([True, False, True, False, False])
    for step in range(3):
        losses = draw_losses(5, step)
        weighted = train_step(weighting, losses, present)
        expected = train_step(smaller, losses[present], everywhere(2))
        assert_same(weighted.total, expected.total, rtol=1e-6, atol=1e-6)
        assert_same(weighted.weights[present], expected.weights, rtol=1e-6, atol=0.0)


def test_no_task_present(listed):
    weighting = listed.bind(3)
    train(weighting, 2)
    before = own_state(weighting)
    losses = draw_losses(3).requires_grad_()
    weighted = weighting(losses, torch.zeros(3, dtype=torch.bool))
    assert weighted.total == 0
    weighted.total.backward()
    assert (losses.grad == 0).all()
    for parameter in weighting.parameters():
        assert (parameter.grad == 0).all()
    assert_same(own_state(weighting), before)


def test_everything_mutable_is_in_the_state_dict(listed):
    weighting = listed.bind(4)
    for steps in (0, 1, 4):  # before, while and after tasks have started
        train(weighting, steps)
        file = io.BytesIO()
        torch.save(weighting.state_dict(), file)
        file.seek(0)
        fresh = listed.bind(4)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        assert not fresh.remapped
        assert_same(vectors(fresh), vectors(weighting))
        assert_same(train(fresh, 3, seed=20), train(copy.deepcopy(weighting), 3, seed=20))


def test_loading_overrides_what_was_trained(listed):
    weighting, other = listed.bind(4), listed.bind(4)
    train(weighting, 1)
    state = copy.deepcopy(weighting.state_dict())
    for step in range(3):
        train_step(other, draw_losses(4, step), everywhere(4))
    other.load_state_dict(state)
    assert_same(train(other, 3, seed=20), train(weighting, 3, seed=20))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda weighting: pickle.loads(pickle.dumps(weighting))])
def test_copies_are_equal_and_apart(listed, copied):
    weighting = listed.bind(4)
    train(weighting, 2)
    twin = copied(weighting)
    before = vectors(weighting)
    results = train(twin, 3, seed=20)
    assert_same(vectors(weighting), before)
    assert_same(train(weighting, 3, seed=20), results)


def test_float64(listed):
    weighting, reference = listed.bind(4).to(torch.float64), listed.bind(4)
    assert weighting.dtypes() == {torch.float64}
    for step in range(3):
        losses, present = draw_losses(4, step), some(4, step)
        weighted = train_step(weighting, losses.double(), present)
        assert {x.dtype for x in weighted if x is not None} == {torch.float64}
        expected = train_step(reference, losses, present)
        torch.testing.assert_close(weighted, expected, check_dtype=False, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert weighting.dtypes() == {torch.float64}


@pytest.mark.parametrize("dtype", HALF)
def test_casts_to_half_keep_float32(listed, dtype):
    weighting, reference = listed.bind(4), listed.bind(4)
    train(weighting, 1)
    train(reference, 1)
    host = nn.Sequential(nn.Linear(1, 1), weighting).to(dtype)
    assert host[0].weight.dtype is dtype
    assert weighting.dtypes() == {torch.float32}
    assert_same(vectors(weighting), vectors(reference))
    assert_same(train(weighting, 3, seed=20), train(reference, 3, seed=20))


@pytest.mark.parametrize("dtype", HALF)
def test_half_losses_have_float32_totals(listed, dtype):
    weighting, reference = listed.bind(4), listed.bind(4)
    for step in range(2):
        losses = draw_losses(4, step).to(dtype)
        weighted = train_step(weighting, losses, everywhere(4))
        assert weighted.total.dtype is weighted.weights.dtype is torch.float32
        assert_same(weighted, train_step(reference, losses.float(), everywhere(4)), rtol=1e-5, atol=1e-6)
    assert weighting.dtypes() == {torch.float32}


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_changes_nothing(listed, dtype):
    weighting, reference = listed.bind(4), listed.bind(4)
    for step in range(3):
        losses, present = draw_losses(4, step), some(4, step)
        with torch.autocast("cpu", dtype=dtype):
            weighted = train_step(weighting, losses, present)
            assert torch.is_autocast_enabled("cpu")
        assert_same(weighted, train_step(reference, losses, present))


def test_permutation(listed):
    tasks = make_tasks(6)
    order = [4, 2, 0, 5, 1, 3]
    names = list(tasks)
    weighting, permuted = listed.bind(tasks), listed.bind({names[i]: tasks[names[i]] for i in order})
    same = True
    for step in range(4):
        losses, present = draw_losses(6, step), some(6, step)
        total, weights, log_variances = train_step(weighting, losses, present)
        other = train_step(permuted, losses[order], present[order])
        same = same and torch.allclose(other.total, total, rtol=1e-5)
        same = same and torch.allclose(other.weights, weights[order], rtol=1e-5)
        if log_variances is not None:
            same = same and torch.allclose(other.log_variances, log_variances[order], rtol=1e-5, equal_nan=True)
    assert same is listed.permutes


def test_scale_equivariance(listed):
    scale = torch.tensor([1e3, 1e-2, 1.0, 7.0])
    weighting, scaled = listed.bind(4), listed.bind(4)
    same = True
    for step in range(4):
        losses, present = draw_losses(4, step), some(4, step)
        weights = train_step(weighting, losses, present).weights
        same = same and torch.allclose(train_step(scaled, scale * losses, present).weights * scale, weights, rtol=1e-4)
    assert same is listed.scale_equivariant


def evaluate(weighting, losses, present):
    weighting.eval()
    weighted = weighting(losses.clone().requires_grad_(), present)
    weighted.total.backward()
    weighting.zero_grad()
    weighting.train()
    return weighted


def without_grad(weighting, losses, present):
    with torch.no_grad():
        return weighting(losses, present)


def in_inference_mode(weighting, losses, present):
    with torch.inference_mode():
        return weighting(losses, present)


@pytest.mark.parametrize("look", [evaluate, without_grad, in_inference_mode])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_evaluation_changes_nothing(listed, look, steps):
    weighting = listed.bind(4)
    train(weighting, steps)
    undisturbed = copy.deepcopy(weighting)
    for step in range(3):
        assert look(weighting, draw_losses(4, 70 + step), some(4, 70 + step)).total.isfinite()
    assert_same(vectors(weighting), vectors(undisturbed))
    assert_same(train(weighting, 3, seed=20), train(undisturbed, 3, seed=20))


def test_reset_parameters_after_the_meta_device(listed):
    with torch.device("meta"):
        weighting = listed.bind(4)
    assert {vector.device.type for vector in vectors(weighting).values()} == {"meta"}
    weighting.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*weighting.parameters(), *weighting.buffers()]:
            tensor.fill_(1)  # whatever the memory held
    weighting.reset_parameters()
    fresh = listed.bind(4)
    assert_same(vectors(weighting), vectors(fresh))
    assert_same(train(weighting, 3), train(fresh, 3))


def test_reset_parameters_after_training(listed):
    weighting, fresh = listed.bind(4), listed.bind(4)
    for step in range(3):
        train_step(weighting, draw_losses(4, step), everywhere(4))
    weighting.reset_parameters()
    assert_same(vectors(weighting), vectors(fresh))
    assert_same(train(weighting, 3), train(fresh, 3))


def test_steps_may_share_a_backward(listed):
    """Two micro-batches, one backward: state written by the second must not spoil the graph of the first."""
    weighting = listed.bind(3)
    one, two = draw_losses(3).requires_grad_(), draw_losses(3, 1).requires_grad_()
    first = weighting(one, torch.tensor([True, False, True]))
    second = weighting(two, everywhere(3))
    (first.total + second.total).backward()
    assert_same(one.grad, first.weights, rtol=1e-6, atol=0.0)
    assert_same(two.grad, second.weights, rtol=1e-6, atol=0.0)


def test_inputs_are_left_alone(listed):
    losses, present = draw_losses(3), some(3)
    kept = losses.clone(), present.clone()
    for _ in range(2):
        listed.bind(3)(losses, present)
    assert_same((losses, present), kept)


def test_optimum_is_none_without_log_variances(listed):
    weighting = listed.bind(3)
    losses = draw_losses(3)
    has = train_step(weighting, losses, everywhere(3)).log_variances is not None
    assert (weighting.optimum(losses) is not None) is has
    assert (weighting.log_variance is not None) is has


def test_log_variance_is_that_of_the_last_training_step(listed):
    weighting = listed.bind(4)
    if weighting.log_variance is None:
        assert all(weighted.log_variances is None for weighted in train(weighting, 2))
        return
    for step in range(4):
        weighted = train_step(weighting, draw_losses(4, step), some(4, step))
        assert_same(weighting.log_variance, weighted.log_variances)


def compiles_to_the_same(listed):
    torch._dynamo.reset()
    weighting, reference = listed.bind(3), listed.bind(3)
    compiled = torch.compile(weighting, fullgraph=True, backend="eager")
    for step in range(3):
        losses, present = draw_losses(3, step), some(3, step)
        gradients = []
        for module in (compiled, reference):
            leaf = losses.clone().requires_grad_()
            weighted = module(leaf, present)
            weighted.total.backward()
            gradients.append(leaf.grad)
            assert_same(leaf.grad, weighted.weights, rtol=1e-6, atol=0.0)
        assert_same(gradients[0], gradients[1], rtol=1e-6, atol=0.0)
        assert_same(vectors(weighting), vectors(reference), rtol=1e-6, atol=1e-6)


# torch's compiler itself makes an instance of every autograd.Function that it meets
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning")
@pytest.mark.matrix
def test_compiles(listed):
    if listed.compiles:
        compiles_to_the_same(listed)
    else:
        with pytest.raises(torch._dynamo.exc.TorchDynamoException):
            compiles_to_the_same(listed)
