import math

import pytest
import torch

from lightning_uncertainty._step.window import StepWindow, check_losses, unsound_loss
from lightning_uncertainty.likelihoods import Gaussian, HeteroscedasticGaussian, as_likelihood
from lightning_uncertainty.weightings import (
    AnalyticUncertaintyWeighting,
    FixedWeighting,
    UncertaintyWeighting,
    Weighted,
)

TASKS = {
    "depth": as_likelihood("gaussian"),
    "semantics": as_likelihood("categorical"),
    "edges": as_likelihood("bernoulli"),
}
NAN = float("nan")


def bind(kind=FixedWeighting, *args):
    return kind(*args).bind(TASKS)


def add(window, weighting, losses, present):
    """One step as `weigh` notes it: absent tasks have the loss 0."""
    present = torch.tensor(present)
    losses = torch.where(present, torch.tensor(losses), 0.0)
    weighted = weighting(losses, present)
    window.add(losses, present, weighting, weighted)
    return weighted


def test_loss_is_the_mean_over_steps_with_labels():
    window, weighting = StepWindow(), bind()
    add(window, weighting, [1.0, 2.0, 5.0], [True, True, False])
    add(window, weighting, [3.0, 9.0, 5.0], [True, False, True])
    add(window, weighting, [8.0, 4.0, 7.0], [True, True, False])
    assert window.take(weighting)["loss"] == {"depth": 4.0, "semantics": 3.0, "edges": 5.0}


def test_tasks_without_labels_are_left_out_everywhere():
    window, weighting = StepWindow(), bind(UncertaintyWeighting, 0.0)
    for _ in range(2):
        add(window, weighting, [4.0, 1.0, 1.0], [True, False, False])
    row = window.take(weighting)
    assert set(row) == {"loss", "weight", "loss_share", "sigma", "sigma_gap"}
    for key, by_task in row.items():
        assert list(by_task) == ["depth"], key


def test_a_task_first_present_later_in_the_window():
    window, weighting = StepWindow(), bind(UncertaintyWeighting)
    add(window, weighting, [4.0, 1.0, 1.0], [True, False, False])
    add(window, weighting, [4.0, 0.5, 1.0], [True, True, False])
    row = window.take(weighting)
    assert row["sigma"] == pytest.approx({"depth": 2.0, "semantics": 1.0})
    assert row["weight"] == pytest.approx({"depth": 0.125, "semantics": 1.0})
    assert row["loss"] == pytest.approx({"depth": 4.0, "semantics": 0.5})


def test_weights_and_sigmas_are_those_of_the_latest_present_step():
    window, weighting = StepWindow(), bind(AnalyticUncertaintyWeighting, 0.0)
    add(window, weighting, [4.0, 1.0, 1.0], [True, True, True])
    add(window, weighting, [9.0, 2.0, 1.0], [True, True, False])
    add(window, weighting, [1.0, 8.0, 3.0], [False, True, False])
    row = window.take(weighting)
    assert row["weight"] == pytest.approx({"depth": 1 / 18, "semantics": 1 / 16, "edges": 1 / 2})
    assert row["sigma"] == pytest.approx({"depth": 3.0, "semantics": 4.0, "edges": math.sqrt(2.0)})
    weighted = {"depth": (4 + 9) / 2 / 18, "semantics": (1 + 2 + 8) / 3 / 16, "edges": 1 / 2}
    assert row["loss_share"] == pytest.approx({task: wl / sum(weighted.values()) for task, wl in weighted.items()})
    assert sum(row["loss_share"].values()) == pytest.approx(1.0)


def test_a_log_variance_that_drifts_while_its_task_is_absent_is_not_shown():
    window, weighting = StepWindow(), bind(UncertaintyWeighting, 0.0)
    for present, s in ((True, 0.0), (False, 3.0)):
        weighted = Weighted(torch.tensor(0.0), torch.ones(3), torch.tensor([s, s, s]))
        window.add(torch.ones(3), torch.tensor([True, present, True]), weighting, weighted)
    assert window.take(weighting)["sigma"] == pytest.approx(
        {"depth": math.exp(1.5), "semantics": 1.0, "edges": math.exp(1.5)}
    )


def test_sigma_gap_is_the_distance_to_the_optimum_of_the_mean_loss():
    window, weighting = StepWindow(), bind(UncertaintyWeighting, {"depth": math.log(4.0)})
    add(window, weighting, [1.0, 0.5, 1.0], [True, True, False])
    add(window, weighting, [31.0, 0.5, 1.0], [True, True, False])
    row = window.take(weighting)
    assert row["sigma"] == pytest.approx({"depth": 2.0, "semantics": 1.0})
    assert row["sigma_gap"]["depth"] == pytest.approx(2.0 / math.sqrt((1.0 + 31.0) / 2) - 1)  # σ is half of the RMSE
    assert row["sigma_gap"]["semantics"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("start", [3000.0, -3000.0])
def test_a_sigma_beyond_what_a_number_holds_ends_no_fit(start):
    window, weighting = StepWindow(), bind(UncertaintyWeighting, start)
    for _ in range(2):
        add(window, weighting, [1.0, 1.0, 1.0], [True, True, True])
    row = window.take(weighting)
    assert all(math.isfinite(gap) for gap in row["sigma_gap"].values())


def test_weightings_without_log_variances_have_no_sigma():
    window, weighting = StepWindow(), bind(FixedWeighting, {"depth": 3.0})
    add(window, weighting, [1.0, 9.0, 1.0], [True, True, False])
    row = window.take(weighting)
    assert set(row) == {"loss", "weight", "loss_share"}
    assert row["loss_share"] == {"depth": 0.25, "semantics": 0.75}


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e3])
def test_shares_of_the_weighted_loss_are_free_of_units_and_level_where_sigma_is_at_its_optimum(unit):
    """Those of a Laplace task are twice as high: 1 for the 1/2 of the others."""
    tasks = {**TASKS, "height": as_likelihood("laplace")}
    weighting, window = AnalyticUncertaintyWeighting(0.0).bind(tasks), StepWindow()
    losses = torch.tensor([4.0 * unit**2, 0.1, 3.0, 7.0 * unit])
    window.add(losses, torch.ones(4, dtype=torch.bool), weighting, weighting(losses, torch.ones(4)))
    shares = window.take(weighting)["loss_share"]
    assert shares == pytest.approx({"depth": 0.2, "semantics": 0.2, "edges": 0.2, "height": 0.4})


def test_losses_that_are_negative_or_all_zero_have_shares_by_size_or_none():
    tasks = {"depth": HeteroscedasticGaussian(), "kind": as_likelihood("categorical")}
    weighting, window = FixedWeighting({"depth": 0.5}).bind(tasks), StepWindow()
    for losses, shares in (([-6.0, 1.0], {"depth": 0.75, "kind": 0.25}), ([0.0, 0.0], {})):
        losses, present = torch.tensor(losses), torch.ones(2, dtype=torch.bool)
        window.add(losses, present, weighting, weighting(losses, present))
        assert window.take(weighting)["loss_share"] == shares


def test_a_look_leaves_the_window_as_it_is():
    window, weighting = StepWindow(), bind()
    add(window, weighting, [3.0, 2.0, 1.0], [True, True, False])
    look = window.take(weighting, keep=True)
    add(window, weighting, [5.0, 2.0, 1.0], [True, True, False])
    assert (look["loss"]["depth"], window.take(weighting)["loss"]["depth"]) == (3.0, 4.0)


def test_a_task_that_has_not_started_has_no_sigma_yet():
    window, weighting = StepWindow(), bind(UncertaintyWeighting)
    add(window, weighting, [0.0, 0.5, 1.0], [True, True, False])  # a zero loss starts nothing
    row = window.take(weighting)
    assert list(row["loss"]) == ["depth", "semantics"]
    assert list(row["sigma"]) == list(row["sigma_gap"]) == ["semantics"]


def test_weights_that_are_all_zero_have_no_shares():
    window, weighting = StepWindow(), bind(FixedWeighting, dict.fromkeys(TASKS, 0.0))
    add(window, weighting, [1.0, 1.0, 1.0], [True, True, True])
    row = window.take(weighting)
    assert row["weight"] == dict.fromkeys(TASKS, 0.0)
    assert row["loss_share"] == {}


def test_take_empties_the_window():
    window, weighting = StepWindow(), bind()
    assert window.take(weighting) == {}
    add(window, weighting, [100.0, 100.0, 100.0], [True, True, True])
    window.take(weighting)
    assert window.take(weighting) == {}
    add(window, weighting, [1.0, 1.0, 1.0], [True, False, False])
    assert window.take(weighting)["loss"] == {"depth": 1.0}


def test_rows_are_plain_numbers():
    window, weighting = StepWindow(), bind(UncertaintyWeighting)
    add(window, weighting, [1.0, 1.0, 1.0], [True, True, True])
    for by_task in window.take(weighting).values():
        assert {type(value) for value in by_task.values()} == {float}


@pytest.mark.parametrize("loss", [-1.0, NAN, float("inf")])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_loss_no_weighting_can_use_is_named(loss, step):
    window, weighting = StepWindow(), bind()
    for now in range(3):
        add(window, weighting, [1.0, loss if now == step else 1.0, 1.0], [True, True, True])
    with pytest.raises(ValueError, match="the loss of task 'semantics' should be finite and at least 0: found a value"):
        window.take(weighting)
    assert window.take(weighting) == {}  # the next row is a new one


def test_a_small_loss_that_turned_negative_cannot_hide_behind_large_ones():
    window, weighting = StepWindow(), bind()
    add(window, weighting, [100.0, 1.0, 1.0], [True, True, True])
    add(window, weighting, [-1e-3, 1.0, 1.0], [True, True, True])
    with pytest.raises(ValueError, match="the loss of task 'depth'"):
        window.take(weighting)


def test_adding_does_not_write_into_what_it_is_given():
    window, weighting = StepWindow(), bind(UncertaintyWeighting)
    losses, present = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, True, False])
    weighted = Weighted(torch.tensor(0.0), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0]))
    for _ in range(3):
        window.add(losses, present, weighting, weighted)
    assert losses.tolist() == [1.0, 2.0, 3.0]
    assert weighted.weights.tolist() == [1.0, 2.0, 3.0]
    assert weighted.log_variances.tolist() == [4.0, 5.0, 6.0]
    assert window.take(weighting)["loss"] == {"depth": 1.0, "semantics": 2.0}


def test_the_sentence_names_task_and_finding():
    assert "task 'depth' should be finite and at least 0: found -1.0" in unsound_loss("depth", "-1.0")
    assert "task 'depth' should be finite: found nan" in unsound_loss("depth", "nan", normalised=True)
    assert "'constant'" not in unsound_loss("depth", "nan")


def test_a_negative_loss_is_told_what_it_may_be():
    weighting = FixedWeighting().bind({"depth": Gaussian()})
    for value, told in ((-1.0, True), (-math.inf, False), (math.nan, False), (math.inf, False)):
        with pytest.raises(ValueError, match="task 'depth' should be finite") as error:
            check_losses(weighting, torch.tensor([value]), allow_nonfinite=False)
        assert ("make its task 'constant', or HeteroscedasticGaussian() whose head" in str(error.value)) is told


def test_a_normalised_loss_may_be_negative_and_has_no_sigma():
    window = StepWindow()
    weighting = UncertaintyWeighting().bind({**TASKS, "depth": HeteroscedasticGaussian()})
    for loss in (-3.0, 1.0):
        losses, present = torch.tensor([loss, 4.0, 1.0]), torch.tensor([True, True, True])
        window.add(losses, present, weighting, weighting(losses, present))
    row = window.take(weighting)
    assert row["loss"] == {"depth": -1.0, "semantics": 4.0, "edges": 1.0}
    assert row["weight"]["depth"] == 1.0
    assert list(row["sigma"]) == list(row["sigma_gap"]) == ["semantics", "edges"]


def test_a_normalised_loss_that_was_nan_is_named_as_such():
    window = StepWindow()
    weighting = FixedWeighting().bind({**TASKS, "depth": HeteroscedasticGaussian()})
    losses, present = torch.tensor([NAN, 4.0, 1.0]), torch.tensor([True, True, True])
    window.add(losses, present, weighting, weighting(losses, present))
    with pytest.raises(ValueError, match="'depth' should be finite: found a value that is NaN or inf since"):
        window.take(weighting)
