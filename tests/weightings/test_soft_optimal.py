import json
from pathlib import Path

import pytest
import torch

from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.weightings import SoftOptimalUncertaintyWeighting
from tests._numbers import float64
from tests.weightings._properties import assert_same, draw_losses, everywhere, make_tasks

VECTORS = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", VECTORS["uw.uwso"]["expected"]["rows"], ids=lambda row: f"T={row['T']:g}")
def test_vector_uwso(row):
    losses = float64(VECTORS["uw.uwso"]["inputs"]["loss"])
    weighted = SoftOptimalUncertaintyWeighting(row["T"]).bind(make_tasks(3)).double()(losses, everywhere(3))
    assert_same(weighted.weights, float64(row["weights"]), rtol=1e-9, atol=1e-12)
    assert weighted.total.item() == pytest.approx(row["total"], rel=1e-9)


def test_vector_uwso_scale_dependence():
    """It depends on units: the docstring says so."""
    vector = VECTORS["uw.uwso.scale_dependence"]
    losses = float64(vector["inputs"]["loss"]) * float64([vector["inputs"]["scale_task0"], 1.0, 1.0])
    weighted = (
        SoftOptimalUncertaintyWeighting(vector["inputs"]["T"]).bind(make_tasks(3)).double()(losses, everywhere(3))
    )
    assert_same(weighted.weights, float64(vector["expected"]["weights"]), rtol=1e-9, atol=1e-12)


def test_it_is_the_softmax_of_inverse_losses_whatever_the_likelihood():
    losses = draw_losses(8)
    weights = SoftOptimalUncertaintyWeighting(3.0).bind(make_tasks(8))(losses, everywhere(8)).weights
    assert_same(weights, torch.softmax(1 / losses / 3.0, 0), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("losses", [[0.0, 1.0], [1e-38, 1e-30], [0.0, 0.0], [1e-6, 1e30]])
def test_tiny_losses_do_not_overflow(losses):
    weighted = SoftOptimalUncertaintyWeighting(1e-3).bind(make_tasks(2))(torch.tensor(losses), everywhere(2))
    assert weighted.weights.sum() == 1
    assert weighted.total.isfinite()


def test_a_task_that_is_switched_off_leaves_the_softmax():
    losses = torch.tensor([0.1, 1.0, 2.0])
    off = SoftOptimalUncertaintyWeighting(base_weights={"task0": 0.0}).bind(make_tasks(3))
    assert_same(off(losses, everywhere(3)).weights[1:], torch.softmax(1 / losses[1:], 0), rtol=1e-6, atol=0.0)


def test_there_is_no_sigma_and_nothing_to_learn():
    weighting = SoftOptimalUncertaintyWeighting().bind({"depth": as_likelihood("laplace")})
    assert weighting.meanings() == {}
    assert list(weighting.parameters()) == []


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_the_temperature_is_positive(temperature):
    with pytest.raises(ValueError, match="temperature should be positive and finite: found"):
        SoftOptimalUncertaintyWeighting(temperature)
