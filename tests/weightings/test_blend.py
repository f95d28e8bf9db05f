import copy
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from lightning_uncertainty.weightings import FixedWeighting, UncertaintyWeighting
from lightning_uncertainty.weightings._blend import Blend
from tests._tiers import few
from tests.weightings._properties import WEIGHTINGS, assert_same, draw_losses, make_tasks, some, train, vectors

GIVEN = {"task0": 0.1, "task2": 0.0}  # others 1
COMPILE, FEW = [each for each in WEIGHTINGS if each.compiles], ("uncertainty", "analytic", "bounded")
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def name_of(listed):
    return listed.name


@pytest.fixture(params=WEIGHTINGS, ids=name_of)
def listed(request):
    return request.param


def blended(listed, share=0.3):
    weighting = listed.bind(4)
    weighting.blend_from(GIVEN)
    weighting.blend.share.fill_(share)
    return weighting


def fixed():
    return FixedWeighting(GIVEN).bind(make_tasks(4))


def uncertainty():
    weighting = UncertaintyWeighting().bind(make_tasks(4))
    weighting.blend_from(GIVEN)
    return weighting


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_total_weights_and_gradients_are_between_the_fixed_and_the_own(listed, share):
    weighting, own = blended(listed, share), listed.bind(4)
    for step in range(4):
        losses, present = draw_losses(4, step).requires_grad_(), some(4, step)
        weighted, other, constant = (each(losses, present) for each in (weighting, own, fixed()))
        assert_same(weighted.total, (1 - share) * constant.total + share * other.total, **CLOSE)
        assert_same(weighted.weights, (1 - share) * constant.weights + share * other.weights, **CLOSE)
        assert_same(weighted.log_variances, other.log_variances)
        inputs = [losses, *weighting.parameters()]
        gradient, *of_parameters = torch.autograd.grad(weighted.total, inputs)
        assert_same(weighted.weights, gradient, rtol=1e-6, atol=0.0)
        if of_parameters:
            assert_same(of_parameters, [share * x for x in torch.autograd.grad(other.total, own.parameters())], **CLOSE)
        assert_same(vectors(weighting), vectors(own))
        with torch.no_grad():
            for parameter in [*weighting.parameters(), *own.parameters()]:
                parameter.add_(0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_share_of_0_is_the_fixed_weights_to_the_last_bit(listed, dtype):
    weighting, losses, present = blended(listed, 0.0).to(dtype), draw_losses(4).to(dtype), some(4)
    assert_same(weighting(losses, present)[:2], fixed().to(dtype)(losses, present)[:2])


def test_evaluation_has_the_own_total_and_weights(listed):
    weighting, own = blended(listed), listed.bind(4)
    train(weighting, 2)
    own.load_state_dict(weighting.state_dict())
    losses, present = draw_losses(4, 9), some(4, 9)
    with torch.no_grad():
        assert_same(weighting(losses, present), own(losses, present))
    assert_same(weighting.eval()(losses, present), own.eval()(losses, present))


def test_none_ends_it(listed):
    weighting, own = blended(listed), listed.bind(4)
    weighting.blend_from(None)
    assert_same(train(weighting, 3), train(own, 3))


def test_it_begins_anew_at_the_fixed_weights():
    weighting = uncertainty()
    weighting.blend.share.fill_(0.5)
    weighting.blend_from({})
    present = torch.ones(4, dtype=torch.bool)
    assert weighting(draw_losses(4), present).weights.tolist() == [1.0] * 4


@pytest.mark.parametrize(("given", "found"), [({"other": 1.0}, "found other"), ({"task0": -1.0}, "found -1.0")])
def test_fixed_weights_are_checked_before_anything_changes(given, found):
    weighting = uncertainty()
    before = weighting.blend
    with pytest.raises(ValueError, match=f"blend_from should .*: {found}"):
        weighting.blend_from(given)
    assert weighting.blend is before


def test_it_is_in_no_checkpoint_and_among_no_buffers():
    """Averages of weights pair the buffers of two copies of a module: none may come or go."""
    weighting, own = uncertainty(), UncertaintyWeighting().bind(make_tasks(4))
    assert weighting.state_dict().keys() == own.state_dict().keys()
    assert [name for name, _ in weighting.named_buffers()] == [name for name, _ in own.named_buffers()]
    weighting.load_state_dict(own.state_dict())
    assert weighting.blend is not None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda weighting: pickle.loads(pickle.dumps(weighting))])
def test_copies_blend_no_more(copied):
    """Whoever began it ends it in the one that it knows."""
    weighting = uncertainty()
    twin = copied(weighting)
    assert twin.blend is None
    assert weighting.blend.share == 0.0
    assert_same(train(twin, 2), train(UncertaintyWeighting().bind(make_tasks(4)), 2))


def test_it_moves_with_the_weighting_and_stays_float32_in_half_precision():
    weighting, reference = uncertainty(), uncertainty()
    for each in (weighting, reference):
        each.blend.share.fill_(0.3)
    assert_same(train(weighting.bfloat16(), 2), train(reference, 2))
    assert weighting.double().blend.share.dtype is torch.float64
    assert weighting.to("meta").blend.share.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    weighting, reference = uncertainty(), uncertainty()
    losses, present = draw_losses(4), some(4)
    expected = reference(losses, present)
    with torch.autocast("cpu", dtype=dtype):
        assert_same(weighting(losses, present), expected)


def test_a_step_reads_nothing_from_the_device():
    losses = torch.ones(4, device="meta")  # without data: a read raises
    blend = Blend([0.1, 1.0, 0.0, 1.0], losses)
    blend.share.fill_(0.3)
    total, weights = blend(losses.sum(), losses, losses, losses > 0)
    assert (total.shape, weights.shape) == ((), (4,))


def test_the_share_may_move_before_the_backward():
    weighting = uncertainty()
    losses = draw_losses(4).requires_grad_()
    weighted = weighting(losses, some(4))
    weighting.blend.share.fill_(1.0)
    weighted.total.backward()
    assert_same(losses.grad, weighted.weights, rtol=1e-6, atol=0.0)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("listed", few(COMPILE, FEW, name_of), ids=name_of)
def test_a_compiled_step_is_not_compiled_anew_while_the_share_moves(listed):
    torch._dynamo.reset()
    weighting, reference = blended(listed, 0.0), blended(listed, 0.0)
    for each in (weighting, reference):  # the start from data is a recompile of its own
        each(draw_losses(4), torch.ones(4, dtype=torch.bool))
    frames = CompileCounter()
    compiled = torch.compile(weighting, fullgraph=True, backend=frames)
    for step in range(6):
        for each in (weighting, reference):
            each.blend.share.fill_(step / 5)
        losses, present = draw_losses(4, step), some(4, step)
        assert_same(compiled(losses, present), reference(losses, present), rtol=1e-5, atol=1e-5)
    assert frames.frame_count == 1
    weighting.blend_from(None)
    compiled(draw_losses(4), some(4))
    assert frames.frame_count == 2
