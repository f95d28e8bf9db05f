"""Every checkpoint into every weighting: it loads as the guide says, or one sentence tells why not."""

import itertools
import re
import warnings

import pytest
import torch
from torch import nn
from torchjd.aggregation import GradVacWeighting, UPGradWeighting
from torchjd.scalarization import DWA, IMTLL, UW

from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.likelihoods import Gaussian
from lightning_uncertainty.weightings import AnalyticUncertaintyWeighting, ScalarizerWeighting, UncertaintyWeighting
from lightning_uncertainty.weightings._learnt import LearntWeighting
from tests._numbers import saved
from tests.trainer._weightings import WEIGHTINGS
from tests.weightings._properties import assert_same, draw_losses, everywhere, train_step, vectors

KINDS = {
    **WEIGHTINGS,
    "GradientBalancing, plain sum": GradientBalancing,
    "GradientBalancing, analytic": lambda: GradientBalancing("pcgrad", AnalyticUncertaintyWeighting()),
    "GradientBalancing, UPGrad": lambda: GradientBalancing(UPGradWeighting(), UncertaintyWeighting()),
    "GradientBalancing, GradVac": lambda: GradientBalancing(GradVacWeighting()),
    "Scalarizer, UW": lambda: ScalarizerWeighting(UW),
    "Scalarizer, IMTL-L": lambda: ScalarizerWeighting(IMTLL),
    "Scalarizer, DWA": lambda: ScalarizerWeighting(DWA()),
}
NAMES = ("depth", "size")
SENTENCE = re.compile(r"the checkpoint is not of .*: found one .*; take the weighting that it was written with, or")


def trained(kind, seed=0):
    torch.manual_seed(seed)
    net = nn.ModuleDict({"net": nn.Linear(2, 2), "weighting": KINDS[kind]().bind(dict.fromkeys(NAMES, Gaussian()))})
    for step in range(3):
        net["weighting"].start_epoch(step)
        train_step(net["weighting"], draw_losses(2, seed + step), everywhere(2))
    return net


def learnt(net):
    return sorted(net["weighting"]._vectors())


def as_before(state):
    """As it was when the names were a dict, beside what TorchJD remembered and hashes."""
    old = {name: value for name, value in state.items() if ".foreign_" not in name}
    for name in [name for name in old if name.endswith("_extra_state")]:
        old[name] = {"version": 1, "tasks": list(NAMES)}
        own = name.removesuffix("_extra_state")
        old[f"{own}task_ids"] = trained("FixedWeighting")["weighting"].task_ids
        if f"{own}balance" in old:
            old[name]["solver"] = {}
    return old


def load(net, state, **options):
    """Return torch's answer or error, and the warnings of ours."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer = net.load_state_dict(state, **options)
        except (RuntimeError, ValueError) as error:
            answer = error
    return answer, [str(warning.message) for warning in caught]


@pytest.fixture(scope="module")
def nets():
    return {kind: trained(kind) for kind in KINDS}


@pytest.mark.parametrize("written", [saved, lambda net: as_before(saved(net))], ids=["today", "before"])
@pytest.mark.parametrize("ours", KINDS)
def test_every_checkpoint_loads_or_is_refused_in_one_sentence(ours, written, nets):
    for theirs in KINDS:
        old, net = nets[theirs], trained(ours, seed=5)
        before, state = vectors(net["weighting"]), written(old)
        answer, told = load(net, state)
        if theirs == ours or (learnt(old) == learnt(net) and _within(old) == _within(net)):
            assert answer == ([], []), theirs
            assert told == []
            for name in learnt(net):
                assert_same(net["weighting"].state_dict()[name], old["weighting"].state_dict()[name])
            continue
        if not learnt(old):
            assert answer == ([], []), theirs
            (sentence,) = told
            assert "so its tasks start anew: depth, size" in sentence
        else:
            assert isinstance(answer, RuntimeError), theirs
            assert len(SENTENCE.findall(str(answer))) == 1
            assert str(answer).count('"') == 2  # no more of torch's lists
            assert all(SENTENCE.search(sentence) for sentence in told)
            assert len(told) == bool(learnt(net))
        assert_same(vectors(net["weighting"]), before)


def _within(net):
    inner = getattr(net["weighting"], "weighting", None)
    return None if inner is None else sorted(inner._vectors())


@pytest.mark.parametrize("ours", KINDS)
def test_a_load_that_is_not_strict_has_the_network_and_lets_the_tasks_start_anew(ours, nets):
    for theirs in KINDS:
        old, net = nets[theirs], trained(ours, seed=5)
        before = vectors(net["weighting"])
        answer, told = load(net, saved(old), strict=False)
        assert len(told) <= 1
        assert net["net"].weight.equal(old["net"].weight)
        if answer != ([], []):
            assert_same(vectors(net["weighting"]), before)
            assert len(told) == bool(learnt(net))
        net["weighting"].check_tasks()
        assert train_step(net["weighting"], draw_losses(2), everywhere(2)).total.isfinite()


def test_those_that_learn_log_variances_load_from_each_other(nets):
    kinds = [kind for kind in KINDS if isinstance(KINDS[kind](), LearntWeighting)]
    assert len(kinds) >= 4
    for theirs, ours in itertools.permutations(kinds, 2):
        net = trained(ours, seed=5)
        assert load(net, saved(nets[theirs])) == (([], []), [])
        assert_same(net["weighting"].offset.detach(), nets[theirs]["weighting"].offset.detach())
