import copy
import sys

import pytest
import torch
import torchjd.scalarization as jd
from torch import nn

from lightning_uncertainty.likelihoods import Gaussian
from lightning_uncertainty.weightings import DynamicWeightAverage, ScalarizerWeighting, UncertaintyWeighting
from tests._numbers import saved
from tests.weightings._properties import assert_same, draw_losses, everywhere, train_step, vectors

PREFERENCE = torch.tensor([0.1, 0.2, 0.3, 0.4])
SCALARIZERS = {
    "mean": jd.Mean,
    "sum": jd.Sum,
    "geometric mean": jd.GeometricMean,
    "constant": lambda: jd.Constant(PREFERENCE),
    "stch": lambda: jd.STCH(0.5),
    "stch by task": lambda: jd.STCH(0.5, PREFERENCE, reference=PREFERENCE / 2),
    "cosmos": lambda: jd.COSMOS(0.5, PREFERENCE),
    "pbi": lambda: jd.PBI(2.0, PREFERENCE, reference=PREFERENCE / 2),
    "random": jd.Random,
    "uw": lambda: jd.UW(4),
    "imtl-l": lambda: jd.IMTLL(4),
    "dwa": jd.DWA,
}
REMEMBERING = {"dwa"}
every = pytest.mark.parametrize("make", SCALARIZERS.values(), ids=SCALARIZERS)


def bind(scalarizer, names=("a", "b", "c", "d")):
    return ScalarizerWeighting(scalarizer).bind({name: Gaussian() for name in names})


def remembered(weighting):
    state = {name: value for name, value in weighting.state_dict().items() if name.startswith("foreign_")}
    return state, vectors(weighting)


def epochs(weighting, first, last, present=None):
    """Some epochs of two steps each; all that came out."""
    results = []
    for epoch in range(first, last):
        weighting.start_epoch(epoch)
        for step in range(2):
            there = everywhere(len(weighting.tasks)) if present is None else present
            results.append(train_step(weighting, draw_losses(len(weighting.tasks), 10 * epoch + step), there))
    return results


@every
def test_total_and_weights_are_those_of_the_scalarizer(make):
    torch.manual_seed(0)
    weighting, scalarizer = bind(make()), make()
    for step in range(3):
        losses = draw_losses(4, step).requires_grad_()
        weighted = weighting(losses, everywhere(4))
        (gradient,) = torch.autograd.grad(weighted.total, losses)
        assert_same(weighted.weights, gradient)
        if not isinstance(scalarizer, jd.Random):
            theirs = scalarizer(losses)
            assert_same(weighted.total, theirs)
            assert_same(gradient, torch.autograd.grad(theirs, losses)[0])


@pytest.mark.parametrize("name", [name for name in SCALARIZERS if name not in REMEMBERING])
def test_absent_tasks_are_as_if_they_were_not_registered(name):
    """Numbers by task are those of the tasks present."""
    index = torch.tensor([1, 3])
    weighting, smaller = bind(SCALARIZERS[name]()), SCALARIZERS[name]()
    for part in (vars(smaller), smaller._parameters):
        for key, value in part.items():
            if isinstance(value, torch.Tensor):
                part[key] = nn.Parameter(value[index].detach()) if isinstance(value, nn.Parameter) else value[index]
    smaller = bind(smaller, ("b", "d"))
    for step in range(3):
        losses = draw_losses(4, step)
        present = torch.tensor([False, True, False, True])
        weighted = train_step(weighting, losses, present)
        expected = train_step(smaller, losses[index], everywhere(2))
        assert_same(weighted.total, expected.total)
        assert_same(weighted.weights[index], expected.weights)
        assert weighted.weights[[0, 2]].tolist() == [0.0, 0.0]


def test_parameters_are_found_and_learn_as_ours():
    """TorchJD's uncertainty weighting is ours for Gaussian tasks that start at 0."""
    weighting = bind(jd.UW)
    ours = UncertaintyWeighting(start=0.0, memory=None).bind({name: Gaussian() for name in "abcd"})
    assert [*dict(weighting.named_parameters())] == ["scalarizer.log_var"]
    for step in range(5):
        losses, present = draw_losses(4, step), torch.tensor([True, step % 2 == 0, True, step % 3 == 0])
        assert_same(
            train_step(weighting, losses, present)[:2], train_step(ours, losses, present)[:2], rtol=1e-6, atol=1e-6
        )
    assert_same(weighting.scalarizer.log_var.detach(), ours.offset.detach(), rtol=1e-6, atol=1e-7)


def test_epochs_are_counted():
    """TorchJD's dynamic weight average is ours where labels never miss."""
    weighting = bind(jd.DWA())
    ours = DynamicWeightAverage(2.0).bind({name: Gaussian() for name in "abcd"})
    assert weighting.needs_epoch
    assert not bind(jd.Sum()).needs_epoch
    results = epochs(weighting, 0, 4)
    assert_same([w.weights for w in results], [w.weights for w in epochs(ours, 0, 4)], rtol=1e-5, atol=0.0)
    assert results[0].weights.tolist() == [1.0] * 4
    assert not torch.allclose(results[-1].weights, torch.ones(4), rtol=1e-2)


@every
@pytest.mark.parametrize("end", [1, 3])
def test_a_resumed_fit_goes_on(make, end):
    """In the middle of an epoch, too."""
    weighting, fresh = bind(make()), bind(make())
    epochs(weighting, 0, end)
    weighting.start_epoch(end)
    train_step(weighting, draw_losses(4, 77), everywhere(4))
    fresh.load_state_dict(saved(weighting))
    assert_same(epochs(fresh, end, end + 2), epochs(weighting, end, end + 2))


def test_what_is_remembered_follows_reordered_and_renamed_tasks():
    weighting, other = bind(jd.DWA()), bind(jd.DWA(), ("z", "c", "a", "b"))
    epochs(weighting, 0, 3)
    other.rename({"d": "z"})
    other.load_state_dict(saved(weighting))
    for step in range(2):
        weighting.start_epoch(3 + step)
        other.start_epoch(3 + step)
        losses, order = draw_losses(4, step), [3, 2, 0, 1]
        weights = train_step(weighting, losses, everywhere(4)).weights
        assert_same(train_step(other, losses[order], everywhere(4)).weights, weights[order])


def test_with_a_new_task_what_was_remembered_starts_anew():
    weighting = bind(jd.DWA(), ("a", "b"))
    epochs(weighting, 0, 3)
    other = bind(jd.DWA(), ("a", "b", "new"))
    with pytest.warns(UserWarning, match="new start anew"):
        other.load_state_dict(saved(weighting))
    other.start_epoch(3)
    assert train_step(other, draw_losses(3), everywhere(3)).weights.tolist() == [1.0] * 3


def test_parameters_follow_reordered_tasks():
    weighting, other = bind(jd.UW), bind(jd.UW, ("d", "b", "new"))
    epochs(weighting, 0, 2)
    with pytest.warns(UserWarning, match="new start anew; a, c are dropped"):
        other.load_state_dict(saved(weighting))
    log_var = weighting.scalarizer.log_var
    assert other.scalarizer.log_var.tolist() == [log_var[3].item(), log_var[1].item(), 0.0]


def test_a_checkpoint_from_before_starts_anew():
    weighting = bind(jd.DWA())
    state = weighting.state_dict()
    state["_extra_state"] = {"version": 1, "tasks": list("abcd")}
    weighting.load_state_dict(state)
    assert epochs(weighting, 0, 1)[0].weights.tolist() == [1.0] * 4


@every
def test_evaluation_changes_nothing(make):
    weighting = bind(make())
    epochs(weighting, 0, 2)
    twin = copy.deepcopy(weighting)
    present = torch.tensor([True, False, True, True])
    for look in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        weighting.eval()
        with look():
            assert weighting(draw_losses(4, 5), present).total.isfinite()
        weighting.train()
    assert_same(remembered(weighting), remembered(twin))
    assert_same(epochs(weighting, 2, 4), epochs(twin, 2, 4))


def test_draws_are_those_of_the_step_and_not_of_torch():
    first, second = bind(jd.Random()), bind(jd.Random())
    torch.manual_seed(0)
    results = epochs(first, 0, 2)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(1)
    assert_same(epochs(second, 0, 2), results)
    assert len({tuple(weighted.weights.tolist()) for weighted in results}) == 4


def test_settings_move_and_stay_float32():
    host = nn.Sequential(bind(jd.STCH(0.5, PREFERENCE)))
    host.to(torch.bfloat16)
    assert host[0].scalarizer.weights.dtype == torch.float32
    assert_same(host[0].scalarizer.weights, PREFERENCE)
    assert "scalarizer.weights" not in host[0].state_dict()
    host.to("meta")
    assert host[0].scalarizer.weights.device.type == "meta"


def test_what_is_remembered_moves():
    weighting = bind(jd.DWA())
    epochs(weighting, 0, 3)
    weighting.to("meta")
    assert {average.device.type for average in weighting.scalarizer._previous_averages} == {"meta"}


@pytest.mark.parametrize("steps", [0, 2])
def test_absent_tasks_that_are_remembered_by_position(steps):
    weighting = bind(jd.DWA())
    epochs(weighting, 0, steps)
    twin = copy.deepcopy(weighting)
    with pytest.raises(ValueError, match=r"DWA\(temperature=2.0\) remembers .* found none for b, d; take"):
        weighting(draw_losses(4), torch.tensor([True, False, True, False]))
    assert_same(remembered(weighting), remembered(twin))


@pytest.mark.parametrize("bad", [nn.Linear(2, 2), lambda tasks: nn.Linear(tasks, tasks)])
def test_no_scalarizer(bad):
    with pytest.raises(ValueError, match=r"a scalarizer should be one of TorchJD's, as STCH\(mu=0.1\): found Linear"):
        bind(bad)


@pytest.mark.parametrize("famo", [jd.FAMO, jd.FAMO(4)])
def test_famo_needs_more_than_losses(famo):
    with pytest.raises(ValueError, match="found FAMO, which has to be told"):
        bind(famo)


@pytest.mark.parametrize(
    "scalarizer", [jd.UW(3), jd.Constant(torch.ones(3)), jd.PBI(1.0, PREFERENCE, torch.ones(2, 2))]
)
def test_numbers_for_other_tasks(scalarizer):
    with pytest.raises(ValueError, match=r"one number for each of 4 tasks, or none: found shapes {'.*': .* in "):
        bind(scalarizer)


def test_without_torchjd(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd.scalarization", None)
    with pytest.raises(ModuleNotFoundError, match=r"ScalarizerWeighting needs TorchJD: pip install .*\[torchjd\]"):
        ScalarizerWeighting(jd.Sum())
