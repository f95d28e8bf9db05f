import json
import math
from pathlib import Path

import pytest
import torch

from lightning_uncertainty._tensors import normal
from lightning_uncertainty.weightings import RandomLossWeighting
from tests.weightings._properties import assert_same, draw_losses, everywhere, make_tasks, train_step

VECTOR = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))["rlw"]


def weights_of(weighting, steps):
    """Weights `[steps, T]`."""
    count = len(weighting.tasks)
    return torch.stack([train_step(weighting, draw_losses(count), everywhere(count)).weights for _ in range(steps)])


def test_vector(monkeypatch):
    z = torch.tensor(VECTOR["inputs"]["z"], dtype=torch.float64)
    monkeypatch.setattr("lightning_uncertainty.weightings.random_loss.normal", lambda *keys, dtype: z)
    weighting = RandomLossWeighting().bind(make_tasks(3)).double()
    weights = train_step(weighting, torch.ones(3, dtype=torch.float64), everywhere(3)).weights
    assert_same(weights, torch.tensor(VECTOR["expected"]["weights"], dtype=torch.float64), rtol=1e-9, atol=1e-12)
    times = torch.tensor(VECTOR["expected"]["weights_times_K"], dtype=torch.float64)
    base = dict.fromkeys(make_tasks(3), 3.0)
    weighting = RandomLossWeighting(base_weights=base).bind(make_tasks(3)).double()
    assert_same(train_step(weighting, draw_losses(3).double(), everywhere(3)).weights, times, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [2, 5])
def test_weights_are_the_softmax_of_independent_normal_numbers(count):
    weights = weights_of(RandomLossWeighting(seed=3).bind(make_tasks(count)), 3000)
    torch.testing.assert_close(weights.sum(1), torch.ones(3000))
    torch.testing.assert_close(weights.mean(0), torch.full((count,), 1 / count), rtol=0, atol=0.03)
    differences = weights.log().diff(dim=1).double()  # of z, whose variance is 2 and whose neighbours share a number
    torch.testing.assert_close(differences.mean(0), torch.zeros(count - 1).double(), rtol=0, atol=0.1)
    steps = torch.arange(count - 1)
    expected = 2.0 * (steps == steps[:, None]) - ((steps - steps[:, None]).abs() == 1).double()
    torch.testing.assert_close(torch.atleast_2d(differences.T.cov()), expected.double(), rtol=0, atol=0.2)
    follow = torch.corrcoef(torch.stack([weights[1:, 0], weights[:-1, 0]]))[0, 1]
    assert abs(follow) < 4 / math.sqrt(3000)


def test_seeds_are_apart_and_repeat():
    one, again, two = (weights_of(RandomLossWeighting(seed).bind(make_tasks(3)), 5) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert (one != two).all()


def test_draws_do_not_depend_on_torchs_generator():
    state = torch.get_rng_state()
    weights_of(RandomLossWeighting().bind(make_tasks(3)), 5)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_draw_is_that_of_the_tasks_own_step():
    """An absent task's next draw is the one it would have had."""
    tasks = make_tasks(2)
    weighting, present = RandomLossWeighting(seed=9).bind(tasks), [[True, True], [False, True], [True, True]]
    found = [train_step(weighting, torch.ones(2), torch.tensor(there)).weights for there in present]
    first, second = weighting.task_ids
    z = torch.stack([normal(9, first, torch.tensor(2)), normal(9, second, torch.tensor(3))])
    assert_same(found[1], torch.tensor([0.0, 1.0]))
    assert_same(found[2], z.softmax(0), rtol=1e-6, atol=0.0)


def test_in_evaluation_tasks_have_their_mean_weight():
    weighting = RandomLossWeighting(base_weights={"task0": 0.0, "task1": 4.0}).bind(make_tasks(4))
    weights_of(weighting, 3)
    weights = weighting.eval()(torch.ones(4), torch.tensor([True, True, False, True])).weights
    assert_same(weights, torch.tensor([0.0, 2.0, 0.0, 0.5]))


@pytest.mark.parametrize("seed", [-1, 1 << 63, 1.0])
def test_seeds_that_do_not_fit(seed):
    with pytest.raises(ValueError, match=r"seed should be a whole number in \[0, 2\^63\): found"):
        RandomLossWeighting(seed)
