import json
from pathlib import Path

import pytest
import torch

from lightning_uncertainty.weightings import ImpartialLossWeighting, UncertaintyWeighting
from tests._numbers import float64
from tests.weightings._properties import assert_same, draw_losses, everywhere, make_tasks, train_step

VECTOR = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))["imtl_l"]


def test_vector():
    """Its s is -s here."""
    losses, s, expected = float64(VECTOR["inputs"]["loss"]), VECTOR["inputs"]["s"], VECTOR["expected"]
    weighting = ImpartialLossWeighting({f"task{i}": -x for i, x in enumerate(s)}).bind(make_tasks(3)).double()
    weighted = weighting(losses, everywhere(3))
    weighted.total.backward()
    assert weighted.total.item() == pytest.approx(sum(expected["terms"]), rel=1e-7)
    assert_same(-weighting.offset.grad, float64(expected["grad_s"]), rtol=1e-6, atol=1e-7)
    assert_same(weighting.optimum(losses), -float64(expected["s_opt"]), rtol=VECTOR["rtol"], atol=VECTOR["atol"])
    best = ImpartialLossWeighting(None).bind(make_tasks(3)).double()(losses, everywhere(3))
    assert best.total.item() == pytest.approx(sum(expected["term_opt"]), rel=1e-7)


def test_it_starts_at_the_optimum_of_the_first_labels():
    losses = draw_losses(5) * 1000.0 ** torch.arange(-2.0, 3.0)
    weighted = ImpartialLossWeighting().bind(make_tasks(5))(losses, everywhere(5))
    torch.testing.assert_close(weighted.weights, 1 / losses)
    torch.testing.assert_close(weighted.log_variances, losses.log())


def test_the_papers_start_is_the_plain_sum():
    losses = draw_losses(5)
    weighted = ImpartialLossWeighting(0.0).bind(make_tasks(5))(losses, everywhere(5))
    assert_same(weighted.weights, torch.ones(5))
    assert_same(weighted.log_variances, torch.zeros(5))
    torch.testing.assert_close(weighted.total, losses.sum())


def test_every_weighted_loss_comes_to_be_1():
    weighting, losses = ImpartialLossWeighting(0.0).bind(make_tasks(4)), torch.tensor([0.2, 1.0, 3.0, 0.05])
    for _ in range(300):
        weighted = train_step(weighting, losses, everywhere(4))
    torch.testing.assert_close(weighted.weights * losses, torch.ones(4))
    torch.testing.assert_close(weighting.log_variance.exp(), losses)


def test_at_the_optimum_weights_are_those_of_uncertainty_weighting_but_for_a_factor_of_the_likelihood():
    tasks, losses = make_tasks(8), draw_losses(8)
    own = ImpartialLossWeighting(None).bind(tasks)(losses, everywhere(8)).weights
    other = UncertaintyWeighting().bind(tasks)(losses, everywhere(8)).weights
    factors = torch.tensor([kind.penalty / kind.exponent for kind in tasks.values()])
    torch.testing.assert_close(other, factors * own)


def test_sigma_is_called_what_it_is():
    meanings = ImpartialLossWeighting().bind(make_tasks(3)).meanings()
    assert list(meanings) == ["task0", "task1", "task2"]
    assert all("√loss" in meaning for meaning in meanings.values())
