"""Where a learnt σ starts, and the gradient that moves it: that of the running mean loss."""

import copy
import math

import pytest
import torch

from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.weightings import (
    BoundedUncertaintyWeighting,
    ConstrainedUncertaintyWeighting,
    ImpartialLossWeighting,
    UncertaintyWeighting,
)
from lightning_uncertainty.weightings._learnt import LearntWeighting
from tests._numbers import float64
from tests.weightings._properties import (
    WEIGHTINGS,
    assert_same,
    draw_losses,
    everywhere,
    make_tasks,
    some,
    train,
    train_step,
    vectors,
)

KINDS = [
    UncertaintyWeighting,
    BoundedUncertaintyWeighting,
    ConstrainedUncertaintyWeighting,
    lambda **options: ImpartialLossWeighting(None, **options),
]
NAMES = ["kendall", "bounded", "constrained", "impartial"]
LEARNT = [listed for listed in WEIGHTINGS if isinstance(listed.make(), LearntWeighting)]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=NAMES)
every = pytest.mark.parametrize("listed", LEARNT, ids=lambda listed: listed.name)


def gaussians(count, kind=UncertaintyWeighting, **options):
    return kind(**options).bind({f"task{i}": as_likelihood("gaussian") for i in range(count)})


def gradient(weighting, losses, present=None):
    """That of the offset."""
    weighting.zero_grad()
    weighting(losses, everywhere(len(losses)) if present is None else present).total.backward()
    return weighting.offset.grad.clone()


def step_of(weighting, losses, labels=None, present=None):
    """A step of training of losses that are means of so many labels."""
    if labels is not None:
        weighting.count_labels(torch.tensor(labels))
    present = torch.tensor(labels) > 0 if present is None and labels is not None else present
    return train_step(weighting, torch.tensor(losses), everywhere(len(losses)) if present is None else present)


# -- the gradient ------------------------------------------------------------------------------------------------------


def running_means(losses, memory):
    """Plain and then exponential means, of which no loss counts more than a hundred."""
    decay, mean, means = 1 - 1 / memory, losses[0], [losses[0]]
    for n, loss in enumerate(losses[1:], 2):
        mean = mean + (1 - decay) / (1 - decay**n) * (min(loss, 100 * mean) - mean)
        means.append(mean)
    return means


@pytest.mark.parametrize("memory", [1, 4, 20.0, 1000])
def test_the_running_mean_is_a_plain_one_at_first_an_exponential_one_later_and_hears_no_loss_at_more_than_a_hundred(
    memory,
):
    losses = [*draw_losses(30).tolist(), 1e9, 2.0, 1e-9, 3.0]
    weighting = gaussians(1, start=0.0, memory=memory).double()
    found = []
    for loss in losses:
        step_of(weighting, float64([loss]).tolist())
        found.append(weighting.mean_loss.item())
    assert found == pytest.approx(running_means(float64(losses).float().tolist(), memory), rel=1e-6)
    assert weighting.steps.item() == len(losses)


def kendall(b, s, mean):
    return b / 2 * max(1 - mean * math.exp(-s), -1)


def bounded(b, s, mean):
    root = math.sqrt(mean)
    best = math.log((mean + root * math.sqrt(mean + 8)) / 4)
    return b * max(1 / (1 + math.exp(-s)) - math.exp(-s) * mean / 2, -1 / (1 + math.exp(-best)))


def impartial(b, s, mean):
    return 2 * kendall(b, s, mean)


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        (UncertaintyWeighting, kendall),
        (BoundedUncertaintyWeighting, bounded),
        (ImpartialLossWeighting, impartial),
    ],
)
@pytest.mark.parametrize("start", [-2.0, 0.3, 4.0])
def test_the_gradient_in_s_is_that_of_the_running_mean_loss(kind, formula, start):
    losses = [3.0, 0.2, 5.0, 2.0, 1e5, 1.0]
    weighting = gaussians(2, kind, start=start, base_weights={"task0": 0.3}).double()
    for loss, mean in zip(losses, running_means(losses, 20), strict=True):
        found = gradient(weighting, float64([loss, 7.0]))
        assert found.tolist() == pytest.approx([formula(0.3, start, mean), formula(1.0, start, 7.0)], rel=1e-5)


def test_of_any_likelihood_it_is_the_derivative_at_the_mean_where_that_is_not_steep():
    weighting = UncertaintyWeighting(start=1.0, base_weights={"task1": 3.0}).bind(make_tasks(8)).double()
    means = weighting.loss_at(weighting.start + 0.5)  # a e^{-a s} c L is below 2 r
    published = UncertaintyWeighting(start=1.0, base_weights={"task1": 3.0}, memory=None).bind(make_tasks(8)).double()
    expected = gradient(published, means)
    assert (expected < 0).all()
    assert_same(gradient(weighting, means), expected, rtol=1e-6, atol=1e-9)
    assert_same(gradient(weighting, means), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("exponents", [("gaussian", "gaussian"), ("gaussian", "laplace", "categorical")])
def test_a_constrained_gradient_is_the_derivative_at_the_means_and_bounded_by_twice_that_of_the_optimum(exponents):
    tasks = {f"task{i}": as_likelihood(kind) for i, kind in enumerate(exponents)}
    losses, count = float64([3.0, 0.5, 40.0][: len(tasks)]), len(tasks)
    near = ConstrainedUncertaintyWeighting(0.7).bind(tasks).optimum(losses) + float64([0.2, -0.1, -0.1][:count])
    starts = dict(zip(tasks, near.tolist(), strict=True))
    ours, published = (
        ConstrainedUncertaintyWeighting(0.7, starts, memory=memory).bind(tasks).double() for memory in (20, None)
    )
    assert_same(gradient(ours, losses), gradient(published, losses), rtol=1e-5, atol=1e-8)
    far = dict(zip(tasks, [-9.0, 9.0, 0.0], strict=False))
    found = gradient(ConstrainedUncertaintyWeighting(0.7, far).bind(tasks).double(), losses)
    s = ours.optimum(losses)
    multiplier = (ours.exponent * torch.exp(ours.log_factor - ours.exponent * s) * losses)[0].item()
    assert multiplier < found.abs().max().item() * count < 2 * multiplier * count
    assert found.sum().item() == pytest.approx(0.0, abs=1e-9)


@every_kind
def test_it_is_zero_at_the_optimum_of_the_mean_loss_to_which_training_leads(kind):
    generator = torch.Generator().manual_seed(0)
    weighting = gaussians(3, kind)
    true = torch.tensor([4.0, 0.3, 50.0])
    rates = iter(torch.linspace(0.3, 0.0, 1500).tolist())
    for _ in range(1500):
        jitter = torch.randn(3, 4, generator=generator).square().mean(1)  # of four labels
        train_step(weighting, true * jitter, everywhere(3), lr=next(rates))
    assert_same(weighting.log_variance, weighting.optimum(true), rtol=0.0, atol=0.15)
    again = copy.deepcopy(weighting)
    with torch.no_grad():
        again.offset.copy_(again.optimum(true) - again.start)
        again.mean_loss.copy_(true)
    assert_same(gradient(again.eval(), true), torch.zeros(3), rtol=0.0, atol=2e-6 * true.max().item())


@every
def test_the_total_and_its_gradient_in_the_losses_are_those_of_the_batch(listed):
    weighting = listed.bind(5)
    published = copy.deepcopy(weighting)
    published.memory = None
    for step in range(6):
        losses, present = draw_losses(5, step).requires_grad_(), some(5, step)
        found = []
        for each in (weighting, published):
            weighted = each(losses, present)
            found.append([*weighted, *torch.autograd.grad(weighted.total, losses)])
        assert_same(*found)
        with torch.no_grad():
            published.load_state_dict(copy.deepcopy(weighting.state_dict()))


@every
def test_without_memory_the_gradient_is_the_derivative_of_the_total_and_with_one_step_its_own_but_bounded(listed):
    published, one = listed.bind(4), listed.bind(4)
    published.restart = one.restart = None
    published.memory, one.memory = None, 1
    one._share, one._log_decay = 1.0, -math.inf
    for weighting in (published, one):
        train(weighting, 3)
    losses = draw_losses(4, 50)
    slope = torch.autograd.functional.jacobian(
        lambda offset: torch.func.functional_call(published, {"offset": offset}, (losses, everywhere(4))).total,
        published.offset.detach(),
    )
    assert_same(gradient(published.eval(), losses), slope, rtol=1e-6, atol=1e-6)
    one.load_state_dict(copy.deepcopy(published.state_dict()))
    found = gradient(one.eval(), losses)
    steep = found <= -0.99 * one.base_penalty if isinstance(one, UncertaintyWeighting) else found != slope
    if (
        not isinstance(one, ConstrainedUncertaintyWeighting)
        and "bounds" not in listed.name
        and "group" not in listed.name
    ):
        assert_same(found[~steep], slope[~steep], rtol=1e-4, atol=1e-5)
        assert (slope[steep] <= found[steep] + 1e-5).all()


@pytest.mark.parametrize("far", [1e-9, 1e9, 1e30])
@every
def test_no_gradient_is_steeper_than_the_penalty_is(listed, far):
    weighting = listed.bind(3)
    weighting.memory = weighting.memory or 1
    train(weighting, 3)
    found = gradient(weighting, far * draw_losses(3))
    assert found.isfinite().all()
    if not isinstance(weighting, ConstrainedUncertaintyWeighting):
        most = weighting.base_penalty if isinstance(weighting, UncertaintyWeighting) else weighting.base_weight
        assert (found.abs() <= most).all()


@every_kind
def test_a_loss_of_zero_pulls_the_mean_down_and_one_that_returns_is_heard(kind):
    weighting = gaussians(2, kind, memory=4)
    step_of(weighting, [4.0, 1.0])
    step_of(weighting, [0.0, 1.0])
    assert weighting.mean_loss[0].item() == pytest.approx(4.0 * (1 - 1 / (1 + 0.75)))
    for _ in range(2000):
        step_of(weighting, [0.0, 1.0])
    assert weighting.mean_loss[0] < 1e-38
    weighting.mean_loss.zero_()
    for _ in range(300):
        step_of(weighting, [3.0, 1.0])
    assert weighting.mean_loss[0].item() == pytest.approx(3.0, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_what_is_no_loss_is_not_remembered(bad):
    weighting = gaussians(2)
    train(weighting, 3)
    before = vectors(weighting)
    weighting(torch.tensor([bad, 1.0]), everywhere(2))
    for name in ("mean_loss", "steps"):
        assert getattr(weighting, name)[0] == before[name][0]


@pytest.mark.parametrize("memory", [0.99, 0.0, -3.0, math.nan, math.inf, 2e6])
@every_kind
def test_the_memory_is_a_number_of_steps(kind, memory):
    with pytest.raises(ValueError, match=r"memory should be a number of steps from 1 to 1e\+06, or None: found"):
        kind(memory=memory)


def test_the_memory_is_told_where_it_is_not_the_default():
    assert repr(UncertaintyWeighting(memory=20)) == "UncertaintyWeighting()"
    assert repr(UncertaintyWeighting(0.0, memory=5)) == "UncertaintyWeighting(start=0.0, memory=5)"
    assert repr(UncertaintyWeighting(memory=None)) == "UncertaintyWeighting(memory=None)"


# -- spikes ------------------------------------------------------------------------------------------------------------

SPIKES = {  # what the loss is at the spike and after it
    "a thousand": (1e3, 1.0),
    "a million": (1e6, 1.0),
    "a thousand, then a hundredth": (1e3, 1e-2),
    "a hundred, for good": (1e2, 1e2),
}


def error_after(kind, spike, steps, level=1.0, seed=0, betas=(0.9, 0.99), **options):
    """|σ / σ* - 1| so many steps after a spike, at a rate of 0.01, with the moments that `parameter_groups` gives."""
    at, then = SPIKES[spike]
    weighting = gaussians(2, kind, **options)
    adam = torch.optim.Adam(weighting.parameters(), lr=1e-2, betas=betas)
    generator = torch.Generator().manual_seed(seed)
    for step in range(-200, steps):
        size = level * (1.0 if step < 0 else at if step == 0 else then)
        jitter = 1 + math.sqrt(2 / 256) * torch.randn(2, generator=generator)  # of 256 labels
        adam.zero_grad()
        weighted = weighting(torch.tensor([size, 1.0]) * jitter, everywhere(2))
        weighted.total.backward()
        adam.step()
    best = weighting.optimum(torch.tensor([level * then, 1.0]))
    return abs(math.expm1((weighted.log_variances - best)[0].item() / 2))


@pytest.mark.parametrize("spike", SPIKES)
@every_kind
def test_sigma_is_right_650_steps_after_a_spike(kind, spike):
    errors = [error_after(kind, spike, 650, seed=seed) for seed in range(3)]
    assert sorted(errors)[1] < 0.03, errors


@pytest.mark.parametrize("level", [1e-4, 1e4])
def test_of_a_bounded_total_so_it_is_at_any_level(level):
    """Whose penalty is as steep as σ² is large, and so is the bound."""
    assert error_after(BoundedUncertaintyWeighting, "a thousand", 300, level) < 0.03


def test_under_the_published_gradient_a_spike_stays_in_the_moments_of_adam():
    assert error_after(UncertaintyWeighting, "a thousand, then a hundredth", 650, betas=(0.9, 0.999), memory=None) > 1


# -- start -------------------------------------------------------------------------------------------------------------


def test_the_start_follows_the_mean_over_the_first_labels_until_there_are_enough():
    weighting = gaussians(2)
    losses, labels = [9.0, 1.0, 4.0, 25.0], [1.0, 10.0, 20.0, 1.0]
    total = count = 0.0
    for loss, number in zip(losses, labels, strict=True):
        found = step_of(weighting, [loss, 16.0], [number, 100.0])
        total, count = total + number * loss, count + number
        assert found.log_variances.exp().tolist() == pytest.approx([total / count, 16.0])
        assert weighting.started.tolist() == [count >= 32, True]
        assert weighting.labels.tolist() == [min(count, 32), 32]
        assert (weighting.offset[0] == 0) == (count <= 32)
    start = weighting.start.clone()
    assert start[0].exp().item() == pytest.approx(total / count)
    step_of(weighting, [1.0, 16.0], [1.0, 100.0])
    assert_same(weighting.start, start)
    assert weighting.offset[0] > 0 or weighting.offset[0] < 0


def test_a_single_label_that_happens_to_fit_is_not_all_that_the_start_hears():
    """As of a task that has labels in few rows: residual 0.01 in the first, and 1 in all others."""
    weighting = gaussians(2)
    adam = torch.optim.Adam(weighting.parameters(), lr=1e-2, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(0)
    seen = []
    for step in range(1500):
        sparse = torch.randn(1, generator=generator).square() if step else torch.tensor([1e-4])
        weighting.count_labels(torch.tensor([1.0, 64.0]))
        adam.zero_grad()
        weighted = weighting(torch.cat([sparse, torch.ones(1)]), everywhere(2))
        weighted.total.backward()
        adam.step()
        seen.append(weighted.weights[0].item())
    assert seen[0] == pytest.approx(5000.0)
    assert max(seen[32:]) < 1.0
    assert seen[-1] == pytest.approx(0.5, rel=0.35)


@every
def test_where_the_first_batch_has_enough_labels_all_is_as_if_nobody_had_counted(listed):
    told, untold = listed.bind(4), listed.bind(4)
    for step in range(6):
        losses, present = draw_losses(4, step), some(4, step)
        told.count_labels(torch.where(present, 32.0 + 100 * step, 0.0))
        assert_same(train_step(told, losses, present), train_step(untold, losses, present))
        assert_same(vectors(told), vectors(untold))


def test_an_unknown_number_of_labels_is_enough():
    weighting = gaussians(3)
    step_of(weighting, [4.0, 4.0, 4.0], [math.inf, 31.0, 0.0])
    assert weighting.started.tolist() == [1, 0, 0]
    step_of(weighting, [4.0, 9.0, 9.0], [1.0, math.inf, 1.0])
    assert weighting.started.tolist() == [1, 1, 0]
    assert weighting.start[1].exp().item() == pytest.approx((31 * 4.0 + 32 * 9.0) / 63)
    train_step(weighting, torch.tensor([4.0, 9.0, 25.0]), everywhere(3))  # without a word: all start
    assert weighting.started.tolist() == [1, 1, 1]


def test_numbers_of_labels_are_those_of_one_step():
    weighting = gaussians(1)
    step_of(weighting, [4.0], [3.0])
    train_step(weighting, torch.tensor([9.0]), everywhere(1))
    assert weighting.started.item() == 1


def test_a_given_start_needs_no_labels():
    weighting = gaussians(2, start={"task0": 1.5})
    found = step_of(weighting, [4.0, 9.0], [1.0, 1.0])
    assert found.log_variances.tolist() == pytest.approx([1.5, math.log(9.0)])
    assert weighting.started.tolist() == [1, 0]
    assert weighting.offset[0] != 0


@pytest.mark.parametrize("look", ["eval", "no_grad"])
def test_evaluation_within_the_first_labels_has_the_start_as_it_is(look):
    weighting = gaussians(2)
    step_of(weighting, [4.0, 9.0], [3.0, 0.0])
    before = vectors(weighting)
    with torch.no_grad():
        weighted = (weighting.eval() if look == "eval" else weighting)(torch.tensor([50.0, 25.0]), everywhere(2))
    assert weighted.log_variances.exp().tolist() == pytest.approx([4.0, math.nan], nan_ok=True)
    assert weighted.weights.tolist() == pytest.approx([1 / 8, 1 / 50])
    assert_same(vectors(weighting), before)


def test_tasks_that_share_a_log_variance_count_their_labels_together():
    weighting = gaussians(3, shared=[["task0", "task2"]])
    step_of(weighting, [4.0, 1.0, 10.0], [10.0, 10.0, 10.0])
    assert weighting.started.tolist() == [0, 0, 0]
    assert weighting.start.exp().tolist() == pytest.approx([7.0, 1.0, 7.0])
    step_of(weighting, [6.0, 1.0, 0.0], [12.0, 10.0, 0.0])
    assert weighting.started.tolist() == [1, 0, 1]
    assert weighting.start[0] == weighting.start[2]


def test_a_start_that_follows_goes_on_after_a_resume():
    weighting, resumed = gaussians(2), gaussians(2)
    step_of(weighting, [4.0, 9.0], [3.0, 7.0])
    resumed.load_state_dict(copy.deepcopy(weighting.state_dict()))
    for each in (weighting, resumed):
        step_of(each, [1.0, 2.0], [5.0, 40.0])
        step_of(each, [3.0, 3.0], [50.0, 40.0])
    assert_same(vectors(resumed), vectors(weighting))


def test_what_wraps_a_weighting_passes_the_numbers_on():
    weighting = GradientBalancing("mgda", UncertaintyWeighting()).bind(make_tasks(2))
    step_of(weighting, [4.0, 9.0], [3.0, 40.0])
    assert weighting.weighting.labels.tolist() == [3, 32]
    assert gaussians(2, lambda **_: ConstrainedUncertaintyWeighting()).count_labels(torch.ones(2)) is None


# -- restart -----------------------------------------------------------------------------------------------------------


def steps_until_right(kind, lr=1e-3, **options):
    """How many steps after its loss has fallen to a hundredth σ is within 3 % of right; None if not within 500."""
    weighting = gaussians(2, kind, **options)
    adam = torch.optim.Adam(weighting.parameters(), lr=lr, betas=(0.9, 0.99))
    for step in range(-100, 500):
        losses = torch.tensor([1.0 if step < 0 else 1e-2, 1.0])
        adam.zero_grad()
        weighted = weighting(losses, everywhere(2))
        weighted.total.backward()
        adam.step()
        if step >= 0 and ((weighted.log_variances - weighting.optimum(losses)).abs() < 0.06).all():
            return step
    return None


@every_kind
def test_a_restart_brings_sigma_to_its_optimum_where_the_rate_would_not(kind):
    assert steps_until_right(kind) is None
    assert 50 < steps_until_right(kind, restart=50) < 80


def test_it_comes_after_so_many_steps_in_a_row_a_third_off_and_moves_no_parameter():
    weighting = gaussians(2, start=0.0, memory=2, restart=3)
    weighting.memory = None  # which has nothing to do with it
    late = []
    for loss in [2.0, 2.0, 0.01, 4.0, 4.0, 4.0]:  # ln 16/9 is 0.58
        weighting(torch.tensor([loss, 1.0]), everywhere(2))
        late.append(weighting.late[0].item())
    assert late == [1, 2, 0, 1, 2, -2]
    assert weighting.steps.tolist() == [0, 6]
    assert weighting.start.tolist() == [0.0, 0.0]
    for loss, mean in ((9.0, 9.0), (3.0, 5.0), (3.0, 5.0)):  # a new mean, that it follows for two steps
        weighting(torch.tensor([loss, 1.0]), everywhere(2))
        assert weighting.start.exp().tolist() == pytest.approx([mean, 1.0])
    assert weighting.late.tolist() == [0, 0]
    assert (weighting.offset == 0).all()


def test_tasks_that_share_a_log_variance_restart_together():
    weighting = gaussians(3, shared=[["task0", "task2"]], start=0.0, memory=1, restart=2)
    for present in ([True, True, True], [True, True, True], [True, True, False]):
        weighting(torch.tensor([9.0, 1.0, 9.0]), torch.tensor(present))
    assert weighting.start.exp().tolist() == pytest.approx([9.0, 1.0, 9.0])


def test_a_task_that_is_at_its_bound_or_has_no_loss_left_does_not_restart():
    weighting = gaussians(2, start=0.0, bounds={"task0": (-0.5, math.inf)}, memory=1, restart=1)
    for _ in range(9):
        weighting(torch.tensor([1e-3, 0.0]), everywhere(2))
    assert weighting.start.tolist() == [0.0, 0.0]  # from the bound to 0 it is less than a third


@pytest.mark.parametrize("restart", [0, -5, math.nan])
@every_kind
def test_a_restart_comes_after_a_step_at_least(kind, restart):
    with pytest.raises(ValueError, match="restart should be a number of steps, at least 1, or None: found"):
        kind(restart=restart)


# -- checkpoints of before ---------------------------------------------------------------------------------------------


def old_state(weighting):
    """What it would have been when there were no running means."""
    newer = ("labels", "mean_loss", "steps", "late", "last_offset", "present_since")
    return {name: value for name, value in copy.deepcopy(weighting.state_dict()).items() if name not in newer}


@every
def test_a_checkpoint_from_before_there_were_running_means_loads_as_started_at_its_optimum(listed):
    old, new = listed.bind(4), listed.bind(4)
    train(old, 5)
    new.load_state_dict(old_state(old), strict=True)
    assert_same(new.offset.detach(), old.offset.detach())
    assert_same(new.labels, 32.0 * (old.started > 0))
    if isinstance(new, ConstrainedUncertaintyWeighting):  # whose s tell no size
        assert (new.steps == 0).all()
    else:
        raw = (new.start + new.offset).detach()
        known = (new.started > 0) & new.usable(torch.ones(4), everywhere(4))
        assert_same(new.loss_at(raw)[known], new.mean_loss[known], rtol=1e-6, atol=0.0)
        assert (new.steps[new.started > 0] * new._log_decay < -15).all()
        if new.started.all() and "bounds" not in listed.name:
            assert_same(new.optimum(new.mean_loss, new.steps), new.shaped(raw, everywhere(4)), rtol=1e-4, atol=1e-4)
    train(new, 3, seed=40)


def test_an_old_checkpoint_of_tasks_in_another_order_and_of_new_ones_is_filled_by_name():
    old = gaussians(3)
    train_step(old, torch.tensor([4.0, 9.0, 1.0]), torch.tensor([True, True, False]))
    names = ["task1", "new", "task2", "task0"]
    new = UncertaintyWeighting().bind({name: as_likelihood("gaussian") for name in names})
    with pytest.warns(UserWarning, match="new start anew"):
        new.load_state_dict(old_state(old))
    assert new.mean_loss.tolist() == pytest.approx([9.0, 0.0, 0.0, 4.0])
    assert new.labels.tolist() == [32, 0, 0, 32]
    weighted = train_step(new, torch.tensor([9.0, 25.0, 16.0, 4.0]), everywhere(4))
    assert weighted.log_variances.exp().tolist() == pytest.approx([9.0, 25.0, 16.0, 4.0])


@pytest.mark.parametrize("kind", [UncertaintyWeighting, BoundedUncertaintyWeighting, ImpartialLossWeighting])
def test_loss_at_is_the_inverse_of_the_optimum(kind):
    weighting = kind().bind(make_tasks(8)).double()
    losses = draw_losses(8).double()
    assert_same(weighting.loss_at(weighting.optimum(losses)), losses, rtol=1e-6, atol=0.0)


# -- momentum without labels -------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, 1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.5),
    "sgd": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.9),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def raw_of(weighting):
    return (weighting.start + weighting.offset).detach()


def window(weighting, optimizer, *micro):
    """A step of the optimizer of micro-batches, each its losses and who has any; return what the last one reported."""
    optimizer.zero_grad()
    for losses, present in micro:
        weighted = weighting(losses, present)
        weighted.total.backward()
    optimizer.step()
    return weighted


@every
@every_optimizer
def test_a_task_without_labels_stays_where_it_was_whatever_momentum_and_decay_do(listed, make):
    weighting, apart = listed.bind(4), torch.tensor([True, True, False, False])
    optimizer = make(weighting.parameters())
    for step in range(30):
        window(weighting, optimizer, (4**step % 7 * draw_losses(4, step), everywhere(4)))
    before = raw_of(weighting)
    for step in range(40):
        weighting.eval()
        weighting(draw_losses(4, step), apart)  # which changes nothing
        evaluated = weighting(draw_losses(4, step), everywhere(4)).weights
        weighting.train()
        weights = copy.deepcopy(weighting)(draw_losses(4, step), everywhere(4)).weights
        assert_same(evaluated, weights)
        window(weighting, optimizer, (draw_losses(4, step), apart))
    moved = weighting.offset.detach() - weighting.last_offset
    weighting(draw_losses(4), apart)
    assert_same(raw_of(weighting)[2:], before[2:], rtol=0.0, atol=1e-5)
    assert_same(weighting.last_offset, weighting.offset.detach())
    assert (moved != 0).any(), "nothing to be taken out"


@every_kind
def test_where_a_task_has_labels_in_one_micro_batch_the_step_is_its_own(kind):
    weighting, apart = gaussians(3, kind), torch.tensor([True, True, False])
    optimizer = torch.optim.Adam(weighting.parameters(), 1e-2)
    there = (draw_losses(3, 1), everywhere(3))
    for step in range(10):
        window(weighting, optimizer, there, (draw_losses(3, step), everywhere(3)))
    start = weighting.start.clone()
    for micro in ([there, (draw_losses(3, 5), apart)], [(draw_losses(3, 6), apart), there]):
        window(weighting, optimizer, *micro)
        assert_same(weighting.start, start)  # neither between micro-batches, nor
    weighting(draw_losses(3, 7), apart)
    assert_same(weighting.start, start)  # after the step
    window(weighting, optimizer, *[(draw_losses(3, step), apart) for step in range(2)])
    before = raw_of(weighting)
    assert_same(weighting.start, start)
    weighting(*there)
    assert weighting.start[2] != start[2]
    assert raw_of(weighting)[2] != before[2]
    assert_same(weighting.start[:2], start[:2])


def test_tasks_that_share_a_log_variance_move_together_where_one_has_labels():
    weighting = gaussians(3, shared=[["task0", "task1"]])
    optimizer = torch.optim.Adam(weighting.parameters(), 1e-2)
    for step in range(10):
        window(weighting, optimizer, (draw_losses(3, step), everywhere(3)))
    for step in range(20):
        window(weighting, optimizer, (draw_losses(3, step), torch.tensor([True, False, False])))
    weighting(draw_losses(3), everywhere(3))
    raw = raw_of(weighting)
    assert_same(raw[0], raw[1], rtol=0.0, atol=1e-6)


@every
def test_a_resume_between_a_step_and_the_next_batch_takes_the_drift_out(listed):
    weighting, apart = listed.bind(3), torch.tensor([True, False, True])
    optimizer = torch.optim.AdamW(weighting.parameters(), 1e-2, weight_decay=0.5)
    for step in range(8):
        window(weighting, optimizer, (draw_losses(3, step), apart if step % 3 else everywhere(3)))
    resumed = listed.bind(3)
    resumed.load_state_dict(copy.deepcopy(weighting.state_dict()))
    ours, theirs = (kind(draw_losses(3), apart) for kind in (weighting, resumed))
    assert_same(theirs, ours)
    assert_same(vectors(resumed), vectors(weighting))


@every_kind
@pytest.mark.parametrize("count", [2, 10])
def test_a_loss_of_zero_takes_no_weight_out_of_what_float32_holds(kind, count):
    weighting = gaussians(count, kind)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.5, betas=(0.9, 0.99))
    lowest = math.inf
    for second in [0.25] * 20 + [0.0] * 2500 + [0.25] * 200:
        losses = torch.full((count,), 0.25)
        losses[1] = second
        losses.requires_grad_()
        optimizer.zero_grad()
        weighted = weighting(losses, everywhere(count))
        weighted.total.backward()
        optimizer.step()
        assert losses.grad.isfinite().all()
        lowest = min(lowest, weighted.log_variances[1].item())
    assert -80 <= lowest < -5
    assert weighted.log_variances[1] > lowest + 4, "a loss lifts it again"


def test_labels_in_a_tiny_unit_are_not_taken_for_none(monkeypatch):
    monkeypatch.setattr("lightning_uncertainty.weightings._running_means.reads_values", lambda losses: False)
    weighting = gaussians(2)
    for _ in range(3):
        weighted = train_step(weighting, torch.tensor([0.25, 1e-34]), everywhere(2))
    assert weighted.log_variances.tolist() == pytest.approx([math.log(0.25), math.log(1e-34)], rel=1e-5)
