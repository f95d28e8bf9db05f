import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.weightings import BoundedUncertaintyWeighting
from tests.weightings._properties import everywhere, make_tasks, train

VECTOR = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))["uw.liebel"]


def one(start=None, kind="gaussian"):
    return BoundedUncertaintyWeighting(start).bind({"depth": as_likelihood(kind)}).double()


@pytest.mark.parametrize("row", VECTOR["expected"]["rows"], ids=lambda row: f"{row['loss']:g}")
def test_vector_liebel(row):
    loss = torch.tensor([row["loss"]], dtype=torch.float64)
    best = one()(loss, everywhere(1))  # starts at its optimum
    assert best.log_variances.exp().item() == pytest.approx(row["sigma2_opt"], rel=1e-7)
    assert best.total.item() == pytest.approx(row["total_opt"], rel=VECTOR["rtol"])
    assert best.weights.item() == pytest.approx(row["weight_opt"], rel=1e-7)
    assert one(start=0.0)(loss, everywhere(1)).total.item() == pytest.approx(row["at_sigma1"], rel=VECTOR["rtol"])


def test_the_total_is_that_of_the_published_code():
    """AutomaticWeightedLoss: 0.5 / c² L + log(1 + c²), with c learnt."""
    c, losses = nn.Parameter(torch.tensor([0.3, 1.0, 7.0])), torch.tensor([2.0, 0.1, 50.0])
    expected = sum(0.5 / c[i] ** 2 * losses[i] + torch.log(1 + c[i] ** 2) for i in range(3))
    starts = {f"task{i}": 2 * math.log(value) for i, value in enumerate(c.tolist())}
    weighting = BoundedUncertaintyWeighting(starts, memory=None).bind(make_tasks(3))
    total = weighting(losses, everywhere(3)).total
    torch.testing.assert_close(total, expected)
    expected.backward()
    total.backward()
    torch.testing.assert_close(weighting.offset.grad, c.grad * c.detach() / 2)  # dc/ds = c/2


@pytest.mark.parametrize("loss", [1e-30, 1e-3, 0.4, 20.0, 1e30])
def test_the_optimum_is_where_the_gradient_is_zero(loss):
    losses = torch.tensor([loss], dtype=torch.float64)
    optimum = one().optimum(losses)
    at_optimum = one(start=optimum.item())
    at_optimum(losses, everywhere(1)).total.backward()
    penalty = torch.sigmoid(optimum).item()  # its gradient, which the data term's should cancel
    assert at_optimum.offset.grad.item() == pytest.approx(0.0, abs=1e-5 * penalty)


def test_the_total_is_positive_where_that_of_kendall_is_not():
    assert all(weighted.total > 0 for weighted in train(one(), 20))
    assert one(start=-20.0)(torch.tensor([1e-12]), everywhere(1)).total > 0


def test_sigma_is_called_what_it_is():
    weighting = BoundedUncertaintyWeighting().bind(make_tasks(8))
    assert set(weighting.meanings()) == set(weighting.tasks)
    assert all("no deviation" in meaning for meaning in weighting.meanings().values())
    assert one(kind="laplace").optimum(torch.ones(1)).item() == 0.0  # one form for all likelihoods
