import copy
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torchjd.scalarization import UW

from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.weightings import UncertaintyWeighting
from tests._nets import read_nothing
from tests._numbers import float64
from tests.weightings._properties import (
    assert_same,
    draw_losses,
    everywhere,
    make_tasks,
    train,
    train_step,
    vectors,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))
NAN, INF = float("nan"), float("inf")


def gaussians(count, start=None, **kwargs):
    return UncertaintyWeighting(start, **kwargs).bind({f"task{i}": as_likelihood("gaussian") for i in range(count)})


# -- start -------------------------------------------------------------------------------------------------------------


def test_starts_at_the_optimum_of_the_first_batch():
    weighting = UncertaintyWeighting().bind(make_tasks(8))
    losses = draw_losses(8)
    weighted = weighting(losses, everywhere(8))
    torch.testing.assert_close(weighted.log_variances, weighting.optimum(losses))
    torch.testing.assert_close(weighted.weights, weighting.base_penalty / (weighting.exponent * losses))
    for i, likelihood in enumerate(make_tasks(8).values()):
        assert weighted.log_variances[i].item() == pytest.approx(
            likelihood.optimum(losses[i].item()), rel=1e-5, abs=1e-6
        )


def test_the_first_step_has_no_gradient_to_its_log_variance_and_adam_does_not_move_it():
    weighting = UncertaintyWeighting().bind(make_tasks(8))
    adam = torch.optim.Adam(weighting.parameters(), lr=0.1)
    weighting(draw_losses(8), everywhere(8)).total.backward()
    assert (weighting.offset.grad == 0).all()  # exactly: rounding error would be a whole step
    adam.step()
    assert (weighting.offset == 0).all()
    adam.zero_grad()
    weighting(10 * draw_losses(8), everywhere(8)).total.backward()
    assert (weighting.offset.grad < 0).all()  # larger residuals: σ has to grow


def test_a_task_first_present_later_starts_later():
    weighting = gaussians(2)
    first = train_step(weighting, torch.tensor([4.0, 123.0]), torch.tensor([True, False]))
    assert first.log_variances[0].exp().item() == pytest.approx(4.0)
    assert first.log_variances[1].isnan()
    losses = torch.tensor([9.0, 25.0], requires_grad=True)
    second = weighting(losses, everywhere(2))
    assert second.log_variances.exp().tolist() == pytest.approx([4.0, 25.0])
    second.total.backward()
    assert weighting.offset.grad[0] < 0
    assert weighting.offset.grad[1] == 0
    weighting.zero_grad()
    third = weighting(torch.tensor([9.0, 36.0]), everywhere(2))
    assert third.log_variances.exp().tolist() == pytest.approx([4.0, 25.0])
    third.total.backward()
    assert (weighting.offset.grad < 0).all()


def test_a_start_takes_an_offset_that_is_not_zero_into_account():
    weighting = gaussians(1)
    with torch.no_grad():
        weighting.offset.fill_(0.7)
    assert weighting(torch.tensor([4.0]), everywhere(1)).log_variances.exp().item() == pytest.approx(4.0)
    assert weighting(torch.tensor([9.0]), everywhere(1)).log_variances.exp().item() == pytest.approx(4.0)


@pytest.mark.parametrize("loss", [0.0, -1.0, INF, NAN])
def test_a_loss_without_an_optimum_starts_nothing(loss):
    weighting = gaussians(2)
    before = vectors(weighting)
    weighted = weighting(torch.tensor([loss, 4.0]), everywhere(2))
    assert weighted.log_variances[0].isnan()
    assert weighting.started.tolist() == [False, True]
    assert weighting.start[0] == before["start"][0]
    again = weighting(torch.tensor([9.0, 4.0]), everywhere(2))
    assert again.log_variances.exp().tolist() == pytest.approx([9.0, 4.0])


@pytest.mark.parametrize("memory", [20, None])
def test_a_zero_loss_before_the_start_moves_nothing(memory):
    weighting = gaussians(1, memory=memory)
    weighted = train_step(weighting, torch.zeros(1), everywhere(1))
    assert weighted.total.isfinite()
    assert weighting.offset.item() == 0.0


@pytest.mark.parametrize("start", [0.0, -0.5, 3])
def test_start_is_a_number(start):
    weighting = gaussians(3, start)
    weighted = weighting(torch.tensor([4.0, 9.0, 16.0]), everywhere(3))
    assert weighted.log_variances.tolist() == [start] * 3
    weighted.total.backward()
    assert (weighting.offset.grad != 0).all()  # it learns from the first step on


def test_start_is_a_number_for_some_tasks():
    weighting = gaussians(3, {"task1": -2.0})
    weighted = weighting(torch.tensor([4.0, 9.0, 16.0]), everywhere(3))
    assert weighted.log_variances.tolist() == pytest.approx([math.log(4), -2.0, math.log(16)])
    weighted.total.backward()
    assert weighting.offset.grad[[0, 2]].tolist() == [0.0, 0.0]
    assert weighting.offset.grad[1] != 0


@pytest.mark.parametrize("start", [NAN, INF, {"task0": -INF}])
def test_start_is_finite(start):
    with pytest.raises(ValueError, match=r"start should be finite numbers: found .* for task 'task0'"):
        gaussians(2, start)


def test_start_of_unknown_tasks():
    with pytest.raises(ValueError, match=r"start should name registered tasks \(task0, task1\): found task9"):
        gaussians(2, {"task9": 0.0})


def test_base_weight_zero_freezes():
    weighting = gaussians(2, start={"task0": 1.0}, base_weights={"task0": 0.0, "task1": 0.0})
    for _ in range(2):
        weighted = weighting(torch.tensor([4.0, 9.0]), everywhere(2))
        assert weighted.total == 0
        weighted.total.backward()
        assert weighting.offset.grad.tolist() == [0.0, 0.0]
    assert weighted.log_variances[0] == 1.0
    assert weighted.log_variances[1].isnan()


def test_evaluation_does_not_start():
    weighting = gaussians(2).eval()
    weighted = weighting(torch.tensor([4.0, 9.0]), everywhere(2))
    assert weighted.weights.tolist() == pytest.approx([1 / 8, 1 / 18])  # the optimum of this batch, for once
    assert weighted.log_variances.isnan().all()
    assert not weighting.started.any()
    weighting.train()
    assert weighting(torch.tensor([1.0, 1.0]), everywhere(2)).log_variances.tolist() == [0.0, 0.0]


def test_a_resumed_run_does_not_start_again():
    weighting = gaussians(2)
    train_step(weighting, torch.tensor([4.0, 5.0]), torch.tensor([True, False]))
    train_step(weighting, torch.tensor([6.0, 5.0]), torch.tensor([True, False]))
    resumed = gaussians(2)
    resumed.load_state_dict(copy.deepcopy(weighting.state_dict()))
    s = weighting.start[0] + weighting.offset[0]
    assert s.item() != pytest.approx(math.log(4.0))
    weighted = resumed(torch.tensor([1000.0, 25.0]), everywhere(2))
    assert weighted.log_variances[0] == s  # where it was
    assert weighted.log_variances[1].exp().item() == pytest.approx(25.0)  # which had not started


def test_a_checkpoint_from_before_the_start_starts_again():
    weighting = gaussians(1)
    untouched = copy.deepcopy(weighting.state_dict())
    for _ in range(2):
        train_step(weighting, torch.tensor([4.0]), everywhere(1))
    weighting.load_state_dict(untouched)
    assert weighting(torch.tensor([25.0]), everywhere(1)).log_variances.exp().item() == pytest.approx(25.0)


def test_where_values_are_not_read_every_step_the_result_is_the_same(monkeypatch):
    eager = gaussians(2)
    results = train(eager, 120)
    read_nothing(monkeypatch)
    looks, settle = [], UncertaintyWeighting.settle

    def counted(weighting):
        looks.append(weighting)
        settle(weighting)

    monkeypatch.setattr(UncertaintyWeighting, "settle", counted)
    weighting = gaussians(2)
    assert_same(train(weighting, 120), results, rtol=1e-5, atol=1e-6)
    assert_same(vectors(weighting), vectors(eager), rtol=1e-5, atol=1e-6)
    assert len(looks) == 1  # one look at step 50, and none once all have started


# -- learning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_torchjds_uw_is_ours_for_gaussian_tasks_from_zero(optimizer):
    ours, theirs = gaussians(4, start=0.0, memory=None), UW(4)
    steps = [optimizer(module.parameters(), lr=0.05) for module in (ours, theirs)]
    for step in range(20):
        losses = draw_losses(4, step)
        total, expected = ours(losses, everywhere(4)).total, theirs(losses)
        torch.testing.assert_close(total, expected)
        for loss, each in zip((total, expected), steps, strict=True):
            each.zero_grad()
            loss.backward()
            each.step()
        torch.testing.assert_close(ours.start + ours.offset, theirs.log_var)


def test_sigma_arrives_at_the_residuals():
    tasks = make_tasks(8)
    weighting = UncertaintyWeighting(start=0.0).bind(tasks)
    losses = torch.tensor([4.0, 0.5, 3.0, 0.7, 0.2, 0.4, 2.0, 1.5])
    adam = torch.optim.Adam(weighting.parameters(), lr=0.3)
    for _ in range(150):
        adam.zero_grad()
        weighting(losses, everywhere(8)).total.backward()
        adam.step()
    expected = [likelihood.optimum(x) for likelihood, x in zip(tasks.values(), losses.tolist(), strict=True)]
    torch.testing.assert_close(weighting.log_variance, torch.tensor(expected), rtol=1e-3, atol=1e-3)


def test_weight_decay_pulls_towards_the_first_batch():
    weighting = gaussians(1)
    sgd = torch.optim.SGD(weighting.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(50):
        sgd.zero_grad()
        weighting(torch.tensor([100.0]), everywhere(1)).total.backward()
        sgd.step()
    assert weighting.log_variance.div(2).exp().item() == pytest.approx(10.0, rel=1e-5)


def test_the_offset_is_the_only_parameter():
    weighting = UncertaintyWeighting().bind(make_tasks(3))
    assert [name for name, _ in weighting.named_parameters()] == ["offset"]
    assert weighting.offset.shape == (3,)


# -- vectors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["uw.gaussian.s0", "uw.gaussian.s_half", "uw.gaussian.opt"])
def test_vector_gaussian(key):
    vector = VECTORS[key]
    names = ["task0", "task1", "task2"]
    weighting = gaussians(3, dict(zip(names, vector["inputs"]["s"], strict=True)), memory=None).double()
    weighting.start.copy_(float64(vector["inputs"]["s"]))  # the number itself, not its float32
    weighted = weighting(float64(vector["inputs"]["loss"]), everywhere(3))
    weighted.total.backward()
    for actual, what in (
        (weighted.total.detach(), "total"),
        (weighted.weights, "weight"),
        (weighting.offset.grad, "grad_s"),
        (weighted.log_variances.div(2).exp(), "sigma"),
    ):
        assert_same(actual, float64(vector["expected"][what]), rtol=vector["rtol"], atol=vector["atol"])


@pytest.mark.parametrize("absent", [0.0, 1.0, 1e12])
def test_vector_missing_task(absent):
    vector = VECTORS["uw.missing_task"]
    weighting = gaussians(2, 0.0).double()
    weighting.start.copy_(float64(vector["inputs"]["s"]))
    losses = float64([vector["inputs"]["loss_task0"], absent])
    total = weighting(losses, torch.tensor([True, vector["inputs"]["task1_observed"] > 0])).total
    total.backward()
    assert_same(total.detach(), float64(vector["expected"]["total"]), rtol=vector["rtol"], atol=vector["atol"])
    grad_s = float64(vector["expected"]["grad_s"])
    assert_same(weighting.offset.grad, grad_s, rtol=vector["rtol"], atol=vector["atol"])


def trajectory(optimizer, loss, steps):
    weighting = gaussians(1, 0.0, memory=None).double()
    step = optimizer(weighting.parameters())
    seen = [weighting.offset.item()]
    for _ in range(steps):
        step.zero_grad()
        weighting(float64([loss]), everywhere(1)).total.backward()
        step.step()
        seen.append(weighting.offset.item())
    return float64(seen)


def test_vector_sgd_trajectory():
    vector = VECTORS["uw.sgd_trajectory"]
    expected = float64(vector["expected"]["s"])
    seen = trajectory(
        lambda p: torch.optim.SGD(p, lr=vector["inputs"]["lr"]), vector["inputs"]["loss"], len(expected) - 1
    )
    assert_same(seen, expected, rtol=vector["rtol"], atol=vector["atol"])


def test_vector_adam_trajectory():
    vector = VECTORS["uw.adam_trajectory"]
    expected, given = float64(vector["expected"]["s"]), vector["inputs"]
    adam = partial(torch.optim.Adam, lr=given["lr"], betas=given["betas"], eps=given["eps"])
    seen = trajectory(adam, given["loss"], len(expected) - 1)
    assert_same(seen, expected, rtol=vector["rtol"], atol=vector["atol"])


def test_vector_weight_decay_bias():
    """Started at 0 as in the paper, L2 decay biases σ towards 1: its stationary points are those of the vector."""
    vector = VECTORS["uw.weight_decay_bias"]
    for row in vector["expected"]["rows"]:
        weighting = gaussians(1, 0.0).double()
        with torch.no_grad():
            weighting.offset.copy_(float64([row["s"]]))
        sgd = torch.optim.SGD(weighting.parameters(), lr=1.0, weight_decay=row["lambda_l2"])
        weighted = weighting(float64([vector["inputs"]["loss"]]), everywhere(1))
        weighted.total.backward()
        sgd.step()
        assert weighting.offset.item() == pytest.approx(row["s"], abs=1e-8)
        assert weighted.log_variances.div(2).exp().item() == pytest.approx(row["sigma"], rel=vector["rtol"])


def test_a_task_that_is_switched_off_does_not_keep_the_others_unsettled():
    tasks = {"depth": as_likelihood("gaussian"), "off": as_likelihood("gaussian")}
    weighting = UncertaintyWeighting(base_weights={"off": 0.0}).bind(tasks)
    losses = torch.tensor([4.0, 9.0], requires_grad=True)
    for step in range(3):
        weighted = weighting(losses, torch.tensor([True, True]))
        assert weighting._settled is (step > 0)
        assert weighted.log_variances.exp().tolist() == pytest.approx([4.0, math.nan], nan_ok=True)
        assert weighted.weights.tolist() == pytest.approx([0.125, 0.0])


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_wide_bounds_change_nothing():
    free, bounded = gaussians(4), gaussians(4, bounds=(-40.0, 40.0))
    assert_same(train(bounded, 5), train(free, 5))


@pytest.mark.parametrize(("bounds", "loss", "nearest"), [((-1.0, INF), 1e-6, -1.0), ((-INF, 2.0), 1e2, 2.0)])
def test_log_variances_stay_at_a_bound_and_leave_it_with_the_loss(bounds, loss, nearest):
    weighting = gaussians(1, bounds=bounds)
    adam = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(400):
        adam.zero_grad()
        weighted = weighting(torch.tensor([loss]), everywhere(1))
        weighted.total.backward()
        adam.step()
        assert bounds[0] <= weighted.log_variances.item() <= bounds[1]
    assert weighted.log_variances.item() == nearest
    assert weighting.optimum(torch.tensor([loss])).item() == nearest
    for _ in range(400):  # the data change: a clamp would never leave its bound
        adam.zero_grad()
        weighted = weighting(torch.tensor([1.0]), everywhere(1))
        weighted.total.backward()
        adam.step()
    assert weighted.log_variances.item() == pytest.approx(0.0, abs=0.05)


def test_a_floor_caps_the_weight():
    weighted = gaussians(2, bounds={"task0": (-2.0, INF)})(torch.tensor([1e-9, 1e-9]), everywhere(2))
    assert weighted.weights[0] == pytest.approx(math.exp(2.0) / 2)
    assert weighted.weights[1] == pytest.approx(0.5e9)


@pytest.mark.parametrize("start", [-2.0, 0.3, 2.99])
def test_a_start_within_bounds_is_kept(start):
    weighting = gaussians(2, start, bounds=(-2.0, 3.0)).double()
    log_variances = weighting(draw_losses(2), everywhere(2)).log_variances
    assert log_variances.tolist() == pytest.approx([start] * 2, abs=1e-4)


@pytest.mark.parametrize("start", [-2.1, 3.1, 9.0])
def test_a_start_outside_its_bounds_is_refused(start):
    with pytest.raises(
        ValueError, match=rf"a start should lie between its bounds -2 and 3: found {start:g} for task 't"
    ):
        gaussians(2, start, bounds=(-2.0, 3.0))


def test_bounds_are_a_lower_and_a_higher_number_of_a_task():
    for bounds in [(1.0, 1.0), (2.0, 1.0), (NAN, 1.0), (1.0, 2.0, 3.0)]:
        with pytest.raises(ValueError, match="bounds should be a lower and a higher log-variance"):
            gaussians(2, bounds={"task1": bounds})
    with pytest.raises(ValueError, match=r"bounds should name registered tasks \(task0, task1\): found depth"):
        gaussians(2, bounds={"depth": (0.0, 1.0)})


# -- tasks that share s ------------------------------------------------------------------------------------------------


def shared(count=3, **kwargs):
    """Gaussian tasks, of which 0 and 2 share `s`."""
    return gaussians(count, shared=[["task0", "task2"]], **kwargs)


def test_shared_tasks_have_the_variance_of_their_pooled_residuals():
    torch.manual_seed(0)
    residuals = torch.randn(2, 1000) * torch.tensor([[3.0], [7.0]])
    losses = torch.stack([residuals[0].square().mean(), torch.tensor(0.1), residuals[1].square().mean()])
    weighted = shared()(losses, everywhere(3))
    sigma = weighted.log_variances.div(2).exp()
    assert sigma[0] == sigma[2] == pytest.approx(residuals.square().mean().sqrt().item(), rel=1e-5)
    assert sigma[1] == pytest.approx(0.1**0.5)


def test_it_is_one_parameter():
    """The same training as with one log-variance used twice, step for step."""
    weighting, start = shared(start=0.4, memory=None), torch.tensor([0.4, 0.4])
    s = start.clone().requires_grad_()
    optimizers = [torch.optim.SGD([p], lr=0.1) for p in (weighting.offset, s)]
    for step in range(10):
        losses, present = draw_losses(3, step), torch.tensor([True, True, step % 3 > 0])
        each = s[torch.tensor([0, 1, 0])]
        total = ((torch.exp(-each) * losses / 2 + each / 2) * present).sum()
        weighted = weighting(losses, present)
        torch.testing.assert_close(weighted.total, total)
        torch.testing.assert_close(weighted.log_variances, each.detach())
        for optimizer, scalar in zip(optimizers, (weighted.total, total), strict=True):
            optimizer.zero_grad()
            scalar.backward()
            optimizer.step()


def test_the_shared_optimum_is_stationary_with_absent_tasks_and_base_weights():
    losses, steps = torch.tensor([2.0, 1.0, 9.0]).double(), torch.tensor([3.0, 1.0, 1.0]).double()
    weighting = shared(base_weights={"task2": 4.0}).double()
    s = weighting.optimum(losses, steps)
    assert s[0] == s[2] == pytest.approx(math.log((3 * 2.0 + 4 * 9.0) / (3 + 4)))
    assert weighting.optimum(losses, torch.tensor([0.0, 1.0, 1.0]))[0] == pytest.approx(math.log(9.0))
    assert weighting.optimum(losses)[0] == pytest.approx(math.log((2.0 + 4 * 9.0) / 5))
    assert shared(3).optimum(torch.tensor([1.0, NAN, 4.0]), torch.tensor([1.0, 0.0, 1.0]))[0] == pytest.approx(
        math.log(2.5)
    )


def test_one_task_starts_for_its_group():
    weighting = shared()
    weighted = train_step(weighting, torch.tensor([4.0, 1.0, 0.0]), torch.tensor([True, False, False]))
    assert weighting.started.tolist() == [True, False, True]
    assert weighted.log_variances[[0, 2]].exp().tolist() == pytest.approx([4.0, 4.0])
    train_step(weighting, torch.tensor([4.0, 1.0, 100.0]), everywhere(3))
    assert weighting.start[2] == weighting.start[0]  # no second start


def test_the_group_is_in_checkpoints_task_by_task():
    old = shared()
    train(old, 4)
    ours = (old.start + old.offset)[0].item()
    assert old.offset[0] == old.offset[2]
    assert old.start[0] == old.start[2]
    alone = UncertaintyWeighting().bind({"task2": as_likelihood("gaussian")})
    with pytest.warns(UserWarning, match="task0, task1 are dropped"):
        alone.load_state_dict(copy.deepcopy(old.state_dict()))
    assert alone(torch.ones(1), everywhere(1)).log_variances.item() == pytest.approx(ours)
    names = ["task9", "task2", "task0"]
    joined = UncertaintyWeighting(shared=[names]).bind({name: as_likelihood("gaussian") for name in names})
    with pytest.warns(UserWarning, match="task9 start anew; task1 are dropped"):
        joined.load_state_dict(copy.deepcopy(old.state_dict()))
    weighted = joined(torch.tensor([50.0, 1.0, 1.0]), everywhere(3))  # a task that joins takes the group's s
    assert weighted.log_variances.tolist() == pytest.approx([ours] * 3, abs=1e-5)


def test_bounds_and_groups_go_together():
    weighting = shared(bounds={"task0": (0.0, INF), "task2": (0.0, INF)})
    weighted = train_step(weighting, torch.tensor([1e-4, 1e-4, 1e-4]), everywhere(3))
    assert weighted.log_variances[0] == weighted.log_variances[2] == 0.0


@pytest.mark.parametrize(
    ("groups", "options", "match"),
    [
        ([["task0", "depth"]], {}, r"shared should name registered tasks \(task0, task1\), each once: found depth"),
        ([["task0", "task1"], ["task1"]], {}, "each once: found task1"),
        ([["task0", "task1"]], {"start": {"task0": 1.0}}, "one likelihood, one start and one pair of bounds"),
        ([["task0", "task1"]], {"bounds": {"task0": (0.0, 1.0)}}, "found different ones in task0, task1"),
    ],
)
def test_groups_are_of_tasks_alike(groups, options, match):
    with pytest.raises(ValueError, match=match):
        gaussians(2, shared=groups, **options)
    with pytest.raises(ValueError, match="one likelihood"):
        UncertaintyWeighting(shared=[["task0", "task1"]]).bind(make_tasks(2))


# -- what is told ------------------------------------------------------------------------------------------------------


def test_repr_shows_the_options_that_were_given():
    assert repr(UncertaintyWeighting()) == "UncertaintyWeighting()"
    weighting = UncertaintyWeighting(0.0, {"depth": 0.5}, bounds=(-4.0, INF))
    assert repr(weighting) == "UncertaintyWeighting(start=0.0, bounds=(-4.0, inf), base_weights={'depth': 0.5})"


def test_meanings_are_those_of_the_likelihoods():
    tasks = make_tasks(8)
    assert UncertaintyWeighting().bind(tasks).meanings() == {name: kind.meaning for name, kind in tasks.items()}
    assert shared().meanings() == {
        "task0": "RMSE [label], pooled with task2",
        "task1": "RMSE [label]",
        "task2": "RMSE [label], pooled with task0",
    }
