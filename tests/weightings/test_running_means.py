"""An ordinary step, in which all tasks have a sound loss, takes a short way; it leads where the long one does."""

import copy

import pytest
import torch

from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.likelihoods import HeteroscedasticGaussian, as_likelihood
from lightning_uncertainty.weightings import AnalyticUncertaintyWeighting, UncertaintyWeighting
from lightning_uncertainty.weightings._running_means import RunningMeans
from tests._nets import read_nothing
from tests._numbers import saved
from tests.weightings._properties import assert_same, draw_losses, everywhere, make_tasks, some, vectors

KINDS = [UncertaintyWeighting, AnalyticUncertaintyWeighting]
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def ordinary(monkeypatch):
    """The ordinary steps so far."""
    steps, hear_all = [], RunningMeans.hear_all

    def counted(weighting, losses):
        steps.append(weighting)
        return hear_all(weighting, losses)

    monkeypatch.setattr(RunningMeans, "hear_all", counted)
    return steps


def fit(weighting, steps, presence=some, seed=0, accumulate=1, optimizer=torch.optim.Adam):
    """What a weighting returned, and its gradients in losses and offset, over steps with a spike and a zero."""
    parameters = list(weighting.parameters())
    optimizer = optimizer(parameters, lr=0.05) if parameters else None
    found = []
    for step in range(seed, seed + steps):
        losses, present = draw_losses(len(weighting.tasks), step), presence(len(weighting.tasks), step)
        losses[0] *= {9: 1e4, 17: 0.0}.get(step, 1.0)
        losses = losses.to(weighting.base_weight.dtype).requires_grad_()
        weighted = weighting(losses, present)
        weighted.total.backward()
        found.append([*weighted, losses.grad, *(parameter.grad.clone() for parameter in parameters)])
        if optimizer is not None and step % accumulate == accumulate - 1:
            optimizer.step()
            optimizer.zero_grad()
    return found


def mostly(count, step):
    return some(count, step) if step % 4 == 3 else everywhere(count)


def everyone(count, step):
    return everywhere(count)


@both
@pytest.mark.parametrize("presence", [everyone, mostly, some])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_leads_where_the_long_way_does(kind, presence, accumulate, dtype, ordinary, monkeypatch):
    base = {"base_weights": {"task1": 0.3}}
    short, long = kind(**base).bind(make_tasks(5)).to(dtype), kind(**base).bind(make_tasks(5)).to(dtype)
    results = fit(short, 40, presence, accumulate=accumulate)
    taken = len(ordinary)
    assert taken >= {everyone: 30, mostly: 15, some: 0}[presence]
    read_nothing(monkeypatch)
    expected = fit(long, 40, presence, accumulate=accumulate)
    assert len(ordinary) == taken
    close = {"rtol": 2e-5, "atol": 2e-6} if dtype is torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    assert_same(results, expected, **close)
    assert_same(vectors(short), vectors(long), **close)


@both
def test_so_it_does_when_the_number_of_steps_no_longer_makes_a_difference(kind, ordinary, monkeypatch):
    short = kind().bind(make_tasks(3)).double()
    fit(short, 3, everyone)
    short.steps.fill_(1e4)
    long = copy.deepcopy(short)
    results = fit(short, 30, everyone, seed=30)
    assert len(ordinary) > 30
    assert short._long
    read_nothing(monkeypatch)
    assert_same(results, fit(long, 30, everyone, seed=30), rtol=1e-12, atol=1e-12)
    assert_same(vectors(short), vectors(long), rtol=1e-12, atol=1e-12)


@both
@pytest.mark.parametrize("steps", [5, 30, 1000])
def test_a_checkpoint_goes_on_to_the_last_bit(kind, steps):
    weighting, loaded = kind().bind(make_tasks(3)), kind().bind(make_tasks(3))
    fit(weighting, steps, everyone)
    fit(loaded, 2, everyone, seed=3)
    loaded.load_state_dict(saved(weighting))
    again = {"presence": everyone, "seed": 40, "optimizer": torch.optim.SGD}
    weighting.zero_grad()
    loaded.zero_grad()
    assert_same(fit(loaded, 5, **again), fit(weighting, 5, **again))
    assert_same(vectors(loaded), vectors(weighting))


@pytest.mark.parametrize(
    "make",
    [
        lambda: UncertaintyWeighting(memory=None),
        lambda: UncertaintyWeighting(restart=9),
        lambda: UncertaintyWeighting(bounds=(-9.0, 9.0)),
        lambda: UncertaintyWeighting(shared=[["task0", "task2"]]),
        lambda: UncertaintyWeighting(base_weights={"task2": 0.0}),
        lambda: AnalyticUncertaintyWeighting(base_weights={"task2": 0.0}),
    ],
)
def test_what_it_does_not_know_of_takes_the_long_way(make, ordinary):
    tasks = {name: as_likelihood("gaussian") for name in ("task0", "task1", "task2")}
    fit(make().bind(tasks), 10, everyone)
    assert not ordinary


@both
def test_beside_a_normalised_task_no_step_is_ordinary(kind, ordinary):
    fit(kind().bind({**make_tasks(2), "own": HeteroscedasticGaussian()}), 10, everyone)
    assert not ordinary


@both
@pytest.mark.parametrize("wrap", [lambda weighting: weighting, lambda weighting: GradientBalancing("mgda", weighting)])
def test_evaluation_and_losses_wider_than_the_weighting_take_the_long_way(kind, wrap, ordinary):
    weighting = wrap(kind()).bind(make_tasks(3))
    fit(weighting, 4, everyone)
    ordinary.clear()
    losses = draw_losses(3, 5)
    weighting.eval()(losses, everywhere(3))
    with torch.no_grad():
        weighting.train()(losses, everywhere(3))
    weighting(losses.double(), everywhere(3))
    assert not ordinary
    weighting(losses, everywhere(3))
    assert len(ordinary) == 1


@both
def test_a_second_derivative_is_that_of_the_long_way(kind, monkeypatch):
    """In a factor of the losses, as of a penalty on gradients; the weights are constants in it, on both ways."""

    def derivatives():
        weighting = kind().bind(make_tasks(3))
        fit(weighting, 4, everyone)
        x = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
        total = weighting(draw_losses(3, 5) * x.square(), everywhere(3)).total
        (first,) = torch.autograd.grad(total, x, create_graph=True)
        return first, torch.autograd.grad(first.square().sum(), x)[0]

    short = derivatives()
    read_nothing(monkeypatch)
    assert_same(short, derivatives(), rtol=1e-5, atol=1e-6)
    assert short[1].abs().min() > 0
