import json
import math
from pathlib import Path

import pytest
import torch
from torchmetrics import Accuracy, MeanMetric

from lightning_uncertainty.likelihoods import Bernoulli, Categorical, CategoricalHalf, as_likelihood
from lightning_uncertainty.weightings import DynamicTaskPrioritization
from tests._numbers import float64
from tests.weightings._properties import assert_same, draw_losses, everywhere, make_tasks, train_step, vectors

VECTORS = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))
NAN = math.nan


def observing(count=1, **options):
    return DynamicTaskPrioritization("observed", **options).bind(make_tasks(count)).double()


def weights_at(weighting, kpis, losses=None):
    weighting.observe(float64(kpis))
    losses = float64(losses or [1.0] * len(kpis))
    return train_step(weighting, losses, everywhere(len(kpis)))


# -- vectors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row", VECTORS["dtp.focal"]["expected"]["rows"], ids=lambda r: f"{r['kappa']:g}, {r['gamma']:g}"
)
def test_vector_focal(row):
    found = weights_at(observing(gamma=row["gamma"]), [row["kappa"]]).weights
    assert found.item() == pytest.approx(row["weight"], rel=VECTORS["dtp.focal"]["rtol"])


def test_vector_ema():
    vector = VECTORS["dtp.ema"]
    weighting = observing(decay=1 - vector["inputs"]["alpha"])
    rows = zip(vector["inputs"]["kpi"], *vector["expected"].values(), strict=True)
    for kpi, mean, weight in rows:
        assert weights_at(weighting, [kpi]).weights.item() == pytest.approx(weight, rel=vector["rtol"])
        assert weighting.kpi.item() == pytest.approx(mean, rel=vector["rtol"])


def test_vector_total():
    inputs, expected = VECTORS["dtp.total"]["inputs"], VECTORS["dtp.total"]["expected"]
    gamma = {f"task{i}": value for i, value in enumerate(inputs["gamma"])}
    weighted = weights_at(observing(2, gamma=gamma), inputs["kappa"], inputs["loss"])
    assert_same(weighted.weights, float64(expected["weights"]), rtol=1e-9, atol=0.0)
    assert weighted.total.item() == pytest.approx(expected["total"], rel=1e-9)


# -- KPIs that follow the loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Categorical(), CategoricalHalf(), Bernoulli(), Categorical(focal=2.0)])
def test_cross_entropies_have_the_probability_of_the_right_class(kind):
    weighting = DynamicTaskPrioritization().bind({"kind": kind})
    train_step(weighting, torch.tensor([0.7]), everywhere(1))
    assert weighting.kpi.item() == pytest.approx(math.exp(-0.7))


def test_a_reference_is_the_loss_of_a_half():
    weighting = DynamicTaskPrioritization({"task0": 3.0, "task3": 0.2}, decay=0.0).bind(
        {name: kind for name, kind in make_tasks(4).items() if name in ("task0", "task3")}
    )
    train_step(weighting, torch.tensor([3.0, 0.2]), everywhere(2))
    assert_same(weighting.kpi, torch.tensor([0.5, 0.5]))
    train_step(weighting, torch.tensor([1e30, 0.0]), everywhere(2))
    assert_same(weighting.shortfall, torch.tensor([1.0, 0.0]))


def test_a_function_of_the_loss_is_asked():
    weighting = DynamicTaskPrioritization({"task0": lambda loss: 1 / (1 + loss.sqrt()), "task1": 1.0}, decay=0.0)
    train_step(weighting.bind(make_tasks(2)), torch.tensor([4.0, 1.0]), everywhere(2))
    assert_same(weighting.kpi, torch.tensor([1 / 3, 0.5]), rtol=1e-6, atol=0.0)


def test_means_are_exponential_from_the_first_value_on_and_absent_tasks_keep_theirs():
    weighting = DynamicTaskPrioritization(1.0, decay=0.8).bind(make_tasks(2))
    mean = {}
    for step in range(10):
        losses, present = draw_losses(2, step), torch.tensor([step % 3 != 0, True])
        train_step(weighting, losses, present)
        for i, loss in enumerate(losses.tolist()):
            if present[i]:
                kpi = 1 / (1 + loss)
                mean[i] = 0.8 * mean[i] + 0.2 * kpi if i in mean else kpi
                assert weighting.kpi[i].item() == pytest.approx(mean[i], rel=1e-5)
        assert (weighting.started > 0).tolist() == [0 in mean, True]


def test_in_evaluation_a_task_that_was_never_trained_has_the_kpi_of_the_batch():
    weighting = DynamicTaskPrioritization(1.0, gamma=0.0).bind(make_tasks(2))
    train_step(weighting, torch.tensor([3.0, 1.0]), torch.tensor([True, False]))
    weights = weighting.eval()(torch.tensor([1.0, 1.0]), everywhere(2)).weights
    assert_same(weights, torch.tensor([math.log(4), math.log(2)]), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("loss", [1e-4, 3e-6])
def test_weights_of_a_task_that_is_nearly_learnt_keep_their_digits(loss):
    """In float32 a KPI this near to 1 has three of them, and its distance all."""
    kinds = {"kind": Categorical(), "depth": as_likelihood("gaussian")}
    weights = train_step(
        DynamicTaskPrioritization({"depth": 1.0}, 0.0).bind(kinds), torch.tensor([loss, loss]), everywhere(2)
    ).weights
    assert_same(weights, torch.tensor([loss, math.log1p(loss)]), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(("kpi", "weight"), [(0.0, -(1 - 1e-3) * math.log(1e-3)), (1.0, 1e-6 * -math.log1p(-1e-6))])
def test_weights_at_the_ends_are_finite_and_none_is_0(kpi, weight):
    assert weights_at(observing(), [kpi]).weights.item() == pytest.approx(weight)


def test_base_weights_multiply_and_switch_off():
    weighting = DynamicTaskPrioritization(1.0, base_weights={"task0": 0.0, "task1": 5.0}).bind(make_tasks(3))
    weights = train_step(weighting, torch.ones(3), everywhere(3)).weights
    assert_same(weights, -0.5 * math.log(0.5) * torch.tensor([0.0, 5.0, 1.0]))
    assert weighting.started.tolist() == [0, 1, 1]


# -- observed KPIs -----------------------------------------------------------------------------------------------------


def test_kpis_are_observed_by_name_and_only_those_named_count():
    weighting = DynamicTaskPrioritization({"task0": "observed", "task1": 1.0, "task2": "observed"}).bind(make_tasks(3))
    weighting.observe({"task2": 0.25, "task0": torch.tensor(0.5)})
    assert_same(weighting.kpi, torch.tensor([0.5, 0.0, 0.25]))
    weighting.observe({"task2": 0.75})
    assert_same(weighting.kpi, torch.tensor([0.5, 0.0, 0.3]))
    train_step(weighting, torch.ones(3), everywhere(3))
    assert_same(weighting.kpi, torch.tensor([0.5, 0.5, 0.3]))  # a step adds nothing to observed ones


def test_a_metric_may_be_observed_by_hand():
    weighting = DynamicTaskPrioritization(Accuracy("binary")).bind(make_tasks(1))
    weighting.observe({"task0": 0.5})
    assert train_step(weighting, torch.ones(1), everywhere(1)).weights.item() == pytest.approx(0.5 * math.log(2))


def test_what_was_observed_in_inference_mode_trains_on():
    weighting = observing()
    with torch.inference_mode():
        weighting.observe({"task0": 0.5})
    assert weights_at(weighting, [0.5]).weights.item() == pytest.approx(0.5 * math.log(2))


@pytest.mark.parametrize("kpi", [-0.1, 1.5, math.inf, -math.inf])
def test_observed_kpis_outside_0_and_1_are_refused(kpi):
    weighting = observing(2)
    for given in ({"task1": kpi}, float64([0.5, kpi])):
        with pytest.raises(ValueError, match=r"the KPI of task 'task1' should lie in \[0, 1\], higher better: found"):
            weighting.observe(given)
    assert_same(weighting.started, torch.zeros(2).double())


@pytest.mark.parametrize("kpi", [-0.1, 1.5, NAN])
def test_kpis_of_a_function_outside_0_and_1_are_refused_before_any_state_changes(kpi):
    weighting = DynamicTaskPrioritization({"task0": lambda loss: loss * kpi, "task1": 1.0}).bind(make_tasks(2))
    before = vectors(weighting)
    with pytest.raises(ValueError, match=r"the KPI of task 'task0' should lie in \[0, 1\]"):
        weighting(torch.ones(2), everywhere(2))
    assert_same(vectors(weighting), before)
    weighting(torch.ones(2), torch.tensor([False, True]))


def test_a_kpi_that_is_never_observed_is_told():
    weighting = DynamicTaskPrioritization({"task0": "observed", "task1": Accuracy("binary")}).bind(make_tasks(2))
    weighting(torch.ones(2), torch.tensor([False, False]))
    for name, other in (("task0", "task1"), ("task1", "task0")):
        weighting.reset_parameters()
        weighting.observe({other: 0.5})
        with pytest.raises(
            ValueError, match=f"KPI of task '{name}' should be observed before the task is weighed: found none"
        ):
            weighting(torch.ones(2), everywhere(2))


def test_a_metric_without_a_value_for_a_batch_is_no_news():
    weighting = DynamicTaskPrioritization({"task0": Accuracy("binary"), "task1": 1.0}).bind(make_tasks(2))
    for heard, weight in ((NAN, 1.0), (0.5, 0.5 * math.log(2)), (NAN, 0.5 * math.log(2))):
        with weighting.hearing(torch.tensor([heard, 0.7])):  # what another task's metric says is not asked for
            weights = train_step(weighting, torch.ones(2), everywhere(2)).weights
        assert_same(weights, torch.tensor([weight, 0.5 * math.log(2)]), rtol=1e-6, atol=0.0)


def test_where_values_are_not_read_what_is_wrong_is_told_with_the_next_row():
    """As on a GPU."""
    torch._dynamo.reset()
    weighting = DynamicTaskPrioritization({"task0": "observed", "task1": lambda loss: loss}).bind(make_tasks(2))
    weighting.settle()
    compiled = torch.compile(weighting, fullgraph=True, backend="eager")
    compiled(torch.tensor([1.0, 3.0]), torch.tensor([False, True]))
    compiled(torch.tensor([1.0, 0.5]), torch.tensor([False, True]))
    with pytest.raises(ValueError, match=r"KPI of task 'task1' should lie in .* found 3"):
        weighting.settle()
    weighting.reset_parameters()
    weighting.settle()
    compiled(torch.tensor([1.0, 0.5]), everywhere(2))
    with pytest.raises(ValueError, match="KPI of task 'task0' should be observed before"):
        weighting.settle()


def test_kpis_that_follow_the_loss_are_not_observed():
    weighting = DynamicTaskPrioritization({"task0": "observed", "task1": 1.0}).bind(make_tasks(2))
    with pytest.raises(ValueError, match="given as 'observed' or as a metric: found task1, which follow the loss"):
        weighting.observe({"task0": 0.5, "task1": 0.5})
    assert_same(weighting.started, torch.zeros(2))


@pytest.mark.parametrize(("given", "message"), [(torch.ones(3), "one for each of 2 tasks"), ({"x": 0.5}, "found x")])
def test_kpis_of_other_tasks_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        observing(2).observe(given)


# -- arguments ---------------------------------------------------------------------------------------------------------


def test_every_task_has_a_kpi():
    tasks = {"depth": as_likelihood("laplace"), "kind": Categorical(), "mass": as_likelihood("gaussian")}
    with pytest.raises(
        ValueError, match=r"should have a KPI: found none for depth, mass, .*kpis=\{'task': reference\}"
    ):
        DynamicTaskPrioritization().bind(tasks)
    with pytest.raises(ValueError, match="found none for mass"):
        DynamicTaskPrioritization({"depth": 1.0, "mass": None}).bind(tasks)


@pytest.mark.parametrize("kpi", [0.0, -1.0, math.inf, NAN, "loss", [1.0]])
def test_kpis_that_are_none(kpi):
    with pytest.raises(ValueError, match=r"a KPI should be a positive reference, .* for task 'task0'"):
        DynamicTaskPrioritization({"task0": kpi}).bind(make_tasks(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, r"decay should lie in \[0, 1\)"),
        ({"decay": NAN}, r"decay should lie in \[0, 1\)"),
        ({"gamma": -1.0}, "gamma should be finite numbers, at least 0"),
        ({"gamma": {"other": 1.0}}, "gamma should name registered tasks"),
        ({"kpis": {"other": 1.0}}, "kpis should name registered tasks"),
    ],
)
def test_arguments_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicTaskPrioritization(**{"kpis": 1.0, **options}).bind(make_tasks(1))


def test_a_metric_is_copied():
    metric = MeanMetric()
    weighting = DynamicTaskPrioritization(metric).bind(make_tasks(2))
    one, two = weighting.kpi_metrics().values()
    assert len({id(metric), id(one), id(two)}) == 3
