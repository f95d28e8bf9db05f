"""Tasks whose likelihood is normalised, under every weighting: weight one without a scale, or one clear refusal."""

import math

import pytest
import torch

from lightning_uncertainty.balancing import MGDA, FrankWolfe, GradientBalancing
from lightning_uncertainty.likelihoods import AsGeneric, Categorical, Gaussian, HeteroscedasticGaussian
from lightning_uncertainty.weightings import (
    AnalyticUncertaintyWeighting,
    DynamicTaskPrioritization,
    FixedWeighting,
    GeometricLossWeighting,
    RandomLossWeighting,
    UncertaintyWeighting,
)
from tests.weightings._properties import WEIGHTINGS, everywhere, train_step

TASKS = {"task0": HeteroscedasticGaussian(), "depth": Gaussian(), "kind": Categorical()}
OTHERS = {name: kind for name, kind in TASKS.items() if name != "task0"}
SCALED = [UncertaintyWeighting, AnalyticUncertaintyWeighting, lambda: GradientBalancing("mgda", UncertaintyWeighting())]
TAKING = (
    UncertaintyWeighting,
    AnalyticUncertaintyWeighting,
    FixedWeighting,
    RandomLossWeighting,
    DynamicTaskPrioritization,
    GradientBalancing,
)
LOSSES = torch.tensor([-1.7, 0.4, 2.5])


@pytest.mark.parametrize("listed", WEIGHTINGS, ids=lambda listed: listed.name)
def test_a_weighting_takes_it_or_says_why_not(listed):
    weighting = listed.make()
    if (
        isinstance(weighting, TAKING)
        and not isinstance(weighting, DynamicTaskPrioritization)
        and "one" not in listed.name
    ):
        weighted = train_step(weighting.bind(TASKS), LOSSES, everywhere(3))
        assert weighted.total.isfinite()
        assert weighted.weights.isfinite().all()
    elif not isinstance(weighting, TAKING):
        with pytest.raises(
            ValueError, match=r"should have losses that are positive .* of task0; take Uncert.* AsGeneric"
        ):
            weighting.bind(TASKS)
        assert weighting.tasks == ()


def test_an_inner_weighting_says_why_not():
    with pytest.raises(ValueError, match="tasks of GeometricLossWeighting should"):
        GradientBalancing("pcgrad", GeometricLossWeighting()).bind(TASKS)


@pytest.mark.parametrize("listed", WEIGHTINGS, ids=lambda listed: listed.name)
def test_wrapped_as_generic_every_weighting_takes_it(listed):
    weighting = listed.bind({"task0": AsGeneric(HeteroscedasticGaussian()), "depth": Gaussian()})
    weighted = train_step(weighting, LOSSES[1:], everywhere(2))
    assert weighted.total.isfinite()


@pytest.mark.parametrize("make", SCALED)
@pytest.mark.parametrize("base", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_its_term_is_its_loss_times_its_base_weight_and_the_others_are_as_without_it(make, base, sign):
    inner = make()
    (inner.weighting if isinstance(inner, GradientBalancing) else inner)._base_weights["task0"] = base
    weighting, without = inner.bind(TASKS), make().bind(OTHERS)
    for step in range(4):
        losses = LOSSES * torch.tensor([sign, 1.0, 1.0]) * (1 + step)
        found = train_step(weighting, losses, everywhere(3))
        other = train_step(without, losses[1:], everywhere(2))
        torch.testing.assert_close(found.total, base * losses[0] + other.total)
        torch.testing.assert_close(found.weights, torch.cat([torch.tensor([base]), other.weights]))
        assert found.log_variances[0].isnan()
        torch.testing.assert_close(found.log_variances[1:], other.log_variances)
    assert weighting.log_variance[0].isnan()
    torch.testing.assert_close(weighting.optimum(LOSSES), torch.cat([torch.zeros(1), without.optimum(LOSSES[1:])]))


@pytest.mark.parametrize("make", SCALED)
def test_absent_or_in_evaluation_it_is_as_any_task(make):
    weighting = make().bind(TASKS)
    absent = train_step(weighting, LOSSES, torch.tensor([False, True, True]))
    assert absent.weights[0] == 0.0
    weighting.eval()
    evaluated = weighting(LOSSES, everywhere(3))
    assert evaluated.weights[0] == 1.0
    assert evaluated.log_variances[0].isnan()


def test_a_start_for_all_a_bound_for_all_and_an_old_checkpoint_give_it_no_scale():
    homoscedastic = {**TASKS, "task0": Gaussian()}
    before = UncertaintyWeighting(start=3.0).bind(homoscedastic)
    weighting = UncertaintyWeighting(start=3.0, bounds=(1.0, 4.0)).bind(TASKS)
    weighting.load_state_dict(before.state_dict())
    for _ in range(3):
        found = train_step(weighting, LOSSES, everywhere(3))
        assert found.weights[0] == 1.0
        assert found.log_variances.isnan().tolist() == [True, False, False]
    assert weighting.offset[0] == 0.0


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"start": {"task0": 1.0}}, "start"),
        ({"bounds": {"task0": (0.0, 1.0)}}, "bounds"),
        ({"shared": [["task0", "depth"]]}, "shared"),
    ],
)
def test_a_scale_asked_for_by_name_is_refused(options, what):
    with pytest.raises(
        ValueError, match=rf"^{what} should name tasks that have a log-variance .* found task0, whose head"
    ):
        UncertaintyWeighting(**options).bind(TASKS)


def test_once_all_others_have_started_steps_no_longer_look_for_a_start():
    weighting = UncertaintyWeighting().bind(TASKS)
    for step in range(2):
        train_step(weighting, LOSSES, everywhere(3))
        assert weighting._settled is (step == 1)


@pytest.mark.parametrize("solver", [MGDA("loss"), FrankWolfe("loss+")])
def test_a_solver_that_divides_by_losses_is_refused(solver):
    with pytest.raises(ValueError, match=r"positive losses .* of task0 for .*take another normalisation"):
        GradientBalancing(solver).bind(TASKS)
    GradientBalancing(type(solver)("l2")).bind(TASKS)


def test_prioritization_needs_a_kpi_that_is_no_ratio_of_losses():
    with pytest.raises(ValueError, match=r"should not be 1 / \(1 \+ loss / reference\): found task0"):
        DynamicTaskPrioritization(1.0).bind(TASKS)
    weighting = DynamicTaskPrioritization({"task0": "observed", "depth": 1.0}).bind(TASKS)
    weighting.observe({"task0": 0.5})
    found = train_step(weighting, LOSSES, everywhere(3))
    assert found.weights[0].item() == pytest.approx(0.5 * math.log(2))


def test_meanings_say_whose_scale_it_is():
    meaning = {"task0": "its head's, per element"}
    assert UncertaintyWeighting().bind(TASKS).meanings() == {name: kind.meaning for name, kind in TASKS.items()}
    assert UncertaintyWeighting(shared=[["depth"]]).bind(TASKS).meanings()["task0"] == meaning["task0"]
    assert FixedWeighting().bind(TASKS).meanings() == meaning
    assert FixedWeighting().bind(OTHERS).meanings() == {}


def test_powers_and_roots_are_those_of_a_loss_that_may_be_negative():
    weighting = UncertaintyWeighting(base_weights={"task0": 0.3}).bind(TASKS)
    assert weighting.powers() == [0.3, 0.5, 0.5]
    assert weighting.roots(torch.tensor([-4.0, -4.0, 4.0])).isfinite().tolist() == [True, False, True]
    assert not weighting.roots(torch.tensor([math.nan, math.inf, 1.0])).isfinite()[:2].any()
    assert not weighting.roots(torch.tensor([-math.inf, 1.0, 1.0])).isfinite()[0]
