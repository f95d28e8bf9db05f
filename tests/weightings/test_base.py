import math

import pytest
import torch

from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.weightings import FixedWeighting, UncertaintyWeighting, Weighted, Weighting
from lightning_uncertainty.weightings._named import named_vector
from tests.weightings._bound import KINDS, UNCOUPLED, WITH_STATE, bind, by_task
from tests.weightings._properties import assert_same, everywhere, train_step

# -- binding and calling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*WITH_STATE, FixedWeighting])
def test_bind_returns_itself_once(kind):
    weighting = kind()
    tasks = {"depth": as_likelihood("laplace")}
    assert weighting.bind(tasks) is weighting
    assert weighting.tasks == ("depth",)
    with pytest.raises(ValueError, match="belongs to one module: found one bound to depth; build a new one"):
        weighting.bind(tasks)


def test_numbers_of_the_likelihoods_are_vectors():
    weighting = bind(UncertaintyWeighting, *KINDS)
    for i, kind in enumerate(as_likelihood(kind) for kind in KINDS.values()):
        numbers = [vector[i].item() for vector in (weighting.log_factor, weighting.exponent, weighting.base_penalty)]
        assert numbers == pytest.approx([math.log(kind.factor), kind.exponent, kind.penalty])


@pytest.mark.parametrize("kind", [*WITH_STATE, FixedWeighting])
def test_forward_before_bind(kind):
    for losses in (torch.ones(2), torch.ones(0)):
        with pytest.raises(ValueError, match=r"0 tasks: found shape \[\d\]; bind it to tasks first"):
            kind()(losses, torch.ones_like(losses, dtype=torch.bool))


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1), ()])
def test_one_loss_for_each_task(shape):
    with pytest.raises(ValueError, match="one loss for each of its 2 tasks: found shape"):
        bind(UncertaintyWeighting, "depth", "edges")(torch.ones(shape), everywhere(2))


def test_weighting_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Weighting()


def test_a_weighting_of_ones_own_needs_one_method():
    class Halves(Weighting):
        def weigh(self, losses, present):
            weights = torch.where(present, 0.5, 0.0)
            return Weighted((weights * losses).sum(), weights, None)

    weighting = Halves().bind({"depth": as_likelihood("laplace"), "edges": as_likelihood("bernoulli")})
    assert weighting(torch.tensor([3.0, 5.0]), torch.tensor([True, False])).total == 1.5
    assert weighting.log_variance is None
    assert weighting.optimum(torch.ones(2)) is None
    fresh = Halves().bind({"edges": as_likelihood("bernoulli"), "depth": as_likelihood("laplace")})
    fresh.load_state_dict(weighting.state_dict())
    assert fresh.remapped


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weigh_is_given_float32_and_no_autocast(dtype):
    class Product(Weighting):
        def weigh(self, losses, present):
            assert losses.dtype is torch.float32
            weights = torch.where(present, 1 / 3, 0.0)
            return Weighted((weights[None] @ losses[:, None]).sum(), weights, None)

    weighting = Product().bind({"depth": as_likelihood("laplace"), "edges": as_likelihood("bernoulli")})
    with torch.autocast("cpu", dtype=dtype):  # a product is the first thing that it would round
        total = weighting(torch.tensor([1.0, 2.0], dtype=dtype), everywhere(2)).total
        assert torch.is_autocast_enabled("cpu")
    assert total.dtype is torch.float32
    assert total.item() == pytest.approx(1.0, rel=1e-6)


def test_optimum_is_that_of_each_likelihood():
    weighting = bind(UncertaintyWeighting, *KINDS)
    losses = torch.tensor([0.3, 1.0, 2.0, 30.0, 1e-3])
    expected = [as_likelihood(kind).optimum(x) for kind, x in zip(KINDS.values(), losses.tolist(), strict=True)]
    torch.testing.assert_close(weighting.optimum(losses), torch.tensor(expected))


# -- numbers by task name ----------------------------------------------------------------------------------------------


def test_named_vector():
    assert named_vector({"b": 2}, ("a", "b"), 1.0, "weights") == (1.0, 2.0)


def test_named_vector_of_unknown_tasks():
    with pytest.raises(ValueError, match=r"weights should name registered tasks \(a, b\): found c, d"):
        named_vector({"c": 1.0, "a": 1.0, "d": 1.0}, ("a", "b"), 1.0, "weights")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -0.1])
def test_named_vector_of_numbers_that_make_no_sense(value):
    with pytest.raises(ValueError, match=r"weights should be finite numbers, at least 0: found .* for task 'b'"):
        named_vector({"b": value}, ("a", "b"), 1.0, "weights", minimum=0.0)


@pytest.mark.parametrize("kind", UNCOUPLED)
def test_base_weights_scale_the_whole_term(kind):
    tasks = {"depth": as_likelihood("laplace"), "edges": as_likelihood("bernoulli")}
    plain, weighed = kind().bind(tasks), kind(base_weights={"depth": 3.0, "edges": 0.5}).bind(tasks)
    losses, base = torch.tensor([4.0, 0.2]), torch.tensor([3.0, 0.5])
    one, other = plain(losses, everywhere(2)), weighed(losses, everywhere(2))
    torch.testing.assert_close(other.weights, base * one.weights)
    assert_same(other.log_variances, one.log_variances)
    alone = [plain(losses, torch.tensor(present)).total for present in ([True, False], [False, True])]
    torch.testing.assert_close(other.total, 3.0 * alone[0] + 0.5 * alone[1])


@pytest.mark.parametrize("kind", WITH_STATE)
def test_base_weight_zero_switches_a_task_off(kind):
    tasks = {"depth": as_likelihood("laplace"), "edges": as_likelihood("bernoulli")}
    weighting = kind(base_weights={"depth": 0.0}).bind(tasks)
    alone = kind().bind({"edges": tasks["edges"]})
    before = by_task(weighting, "depth")
    for step in range(3):
        losses = torch.tensor([4.0, 0.2 + step])
        weighted = train_step(weighting, losses, everywhere(2))
        assert_same(weighted.total, train_step(alone, losses[1:], everywhere(1)).total, rtol=1e-6, atol=0.0)
        assert weighted.weights[0] == 0
        assert weighted.log_variances[0].isnan()
    assert_same(by_task(weighting, "depth"), before)


@pytest.mark.parametrize("kind", WITH_STATE)
def test_base_weights_are_checked(kind):
    tasks = {"depth": as_likelihood("laplace")}
    with pytest.raises(ValueError, match=r"base_weights should name registered tasks \(depth\): found dept"):
        kind(base_weights={"dept": 1.0}).bind(tasks)
    with pytest.raises(ValueError, match=r"base_weights should be finite numbers, at least 0: found -1.0"):
        kind(base_weights={"depth": -1.0}).bind(tasks)
