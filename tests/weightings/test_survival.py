"""What BatchNorm's `num_batches_tracked` survives, every weighting's checkpoint survives."""

import copy
import functools
import json
import struct

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn
from torchjd.aggregation import GradVacWeighting, UPGradWeighting
from torchjd.scalarization import DWA

from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.likelihoods import Gaussian
from lightning_uncertainty.weightings import ScalarizerWeighting, UncertaintyWeighting
from tests._numbers import saved
from tests.weightings._properties import WEIGHTINGS, assert_same, draw_losses, everywhere, train_step

NAMES = ("task0", "größe", "深度")
MAKERS = {listed.name: listed.make for listed in WEIGHTINGS} | {
    "scalarizer with a memory": lambda: ScalarizerWeighting(DWA()),
    "solver with a memory": lambda: GradientBalancing(GradVacWeighting()),
    "solver of TorchJD": lambda: GradientBalancing(UPGradWeighting()),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def host(make, names=NAMES, steps=3, seed=0):
    """A trained weighting beside a normalisation."""
    net = nn.ModuleDict({"norm": nn.BatchNorm1d(3), "weighting": make().bind(dict.fromkeys(names, Gaussian()))})
    for step in range(seed, seed + steps):
        net["norm"](torch.randn(4, 3))
        net["weighting"].start_epoch(step)
        train_step(net["weighting"], draw_losses(len(names), step), everywhere(len(names)))
        if isinstance(net["weighting"], GradientBalancing):
            root = torch.randn(3, 3).double()
            draw = net["weighting"].steps[0].clone()
            net["weighting"].solver(root @ root.T, torch.ones(3).double(), draw)
    return net


def floats(state):
    return {name: value.double() for name, value in state.items() if name != "norm.num_batches_tracked"}


def through_safetensors(state):
    """As that library writes and reads a file: a header in JSON, then the bytes of contiguous tensors."""
    kinds = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
    header, body = {}, b""
    for name, value in state.items():
        data = value.contiguous().numpy().tobytes()
        header[name] = kinds[value.dtype], [*value.shape], [len(body), len(body) + len(data)]
        body += data
    text = json.dumps(header).encode()
    file = struct.pack("<Q", len(text)) + text + body
    start, types = 8 + len(text), {short: dtype for dtype, short in kinds.items()}
    return {
        name: torch.frombuffer(bytearray(file[start + first : start + last]), dtype=types[kind]).reshape(shape)
        for name, (kind, shape, (first, last)) in json.loads(file[8:start]).items()
    }


WAYS = {
    "clone": lambda state: {name: value.clone() for name, value in state.items()},
    "cpu": lambda state: {name: value.cpu() for name, value in state.items()},
    "mean of two": lambda state: {name: (value + value) / 2 for name, value in state.items()},
    "whole mean of five": lambda state: {
        name: (sum([value] * 5) / 5).round().to(value.dtype) if not value.is_floating_point() else sum([value] * 5) / 5
        for name, value in state.items()
    },
    "average over values": lambda state: functools.reduce(
        lambda mean, _: {name: 0.9 * mean[name] + 0.1 * value for name, value in state.items()}, range(100), state
    ),
    "float64": lambda state: {name: value.double() for name, value in state.items()},
    "float": lambda state: {name: value.float() for name, value in state.items()},
    "difference added": lambda state: {name: value + 0.5 * (value - value) for name, value in state.items()},
    "safetensors": through_safetensors,
    "stacked": lambda state: {name: torch.stack([value, value])[1] for name, value in state.items()},
}


@every
def test_a_checkpoint_survives(make):
    """And is read by name afterwards."""
    net = host(make)
    assert sum(value.numel() for value in net.state_dict().values()) > 0
    for names in (NAMES, tuple(NAMES[i] for i in (2, 0, 1))):
        fresh, expected = host(make, names, steps=0), host(make, names, steps=0)
        expected.load_state_dict(net.state_dict())
        for way, altered in WAYS.items():
            assert fresh.load_state_dict(altered(net.state_dict())) == ([], []), way  # a warning would be an error here
            fresh["weighting"].check_tasks()
            assert_same(floats(fresh.state_dict()), floats(expected.state_dict()), rtol=2e-5, atol=1e-6)


@every
def test_names_survive_a_cast_of_everything(make):
    net = host(make)
    for cast in (torch.float16, torch.bfloat16):
        fresh = host(make, tuple(reversed(NAMES)), steps=0)
        assert fresh.load_state_dict({name: value.to(cast) for name, value in net.state_dict().items()}) == ([], [])
        assert fresh["weighting"].remapped


@every
def test_checkpoints_of_other_steps_have_the_same_shapes_and_an_average_loads(make):
    first, last = host(make, steps=1).state_dict(), host(make, steps=12).state_dict()
    assert [(name, value.shape, value.dtype) for name, value in first.items()] == [
        (name, value.shape, value.dtype) for name, value in last.items()
    ]
    fresh, later = host(make, steps=0), host(make, steps=15).state_dict()
    assert fresh.load_state_dict({name: (later[name] + last[name]) / 2 for name in first}) == ([], [])


def test_an_average_of_memories_in_different_forms_starts_anew_and_says_so():
    make = MAKERS["scalarizer with a memory"]
    first, last = host(make, steps=1).state_dict(), host(make, steps=12).state_dict()
    fresh = host(make, steps=0)
    with pytest.warns(UserWarning, match=r"a mean of what ScalarizerWeighting\(.* remembers in different forms"):
        fresh.load_state_dict({name: (first[name] + last[name]) / 2 for name in first})
    assert_same(fresh["weighting"].foreign_numbers, host(make, steps=0)["weighting"].foreign_numbers)


def test_what_another_method_remembers_is_not_taken_for_ones_own():
    of_one, of_other = (host(lambda w=w: GradientBalancing(w())) for w in (GradVacWeighting, UPGradWeighting))
    fresh = host(lambda: GradientBalancing(UPGradWeighting()), steps=0)
    fresh.load_state_dict(of_one.state_dict())
    assert_same(fresh["weighting"].foreign_numbers, of_other["weighting"].foreign_numbers)


@every
@pytest.mark.parametrize(
    "options",
    [
        {"avg_fn": get_ema_avg_fn(0.9)},
        {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
        {},
        {"multi_avg_fn": get_ema_multi_avg_fn(0.9), "use_buffers": True},
        {"avg_fn": get_ema_avg_fn(0.9), "use_buffers": True},
        {"use_buffers": True},
    ],
    ids=["ema", "ema of many", "mean", "ema of many with buffers", "ema with buffers", "mean with buffers"],
)
def test_an_averaged_model_saves_and_weighs(make, options):
    net = host(make, steps=3)
    average = AveragedModel(net, **options)
    for step in range(20):
        train_step(net["weighting"], draw_losses(3, step), everywhere(3))
        average.update_parameters(net)
    weighting = average.module["weighting"]
    fresh = host(make, tuple(reversed(NAMES)), steps=0)
    assert fresh.load_state_dict(saved(average.module)) == ([], [])
    weighting.eval()
    assert weighting(draw_losses(3), everywhere(3)).total.isfinite()
    weighting.check_tasks()  # as a fit begins
    constants = {name: getattr(weighting, name) for name in weighting._constants}
    assert_same(constants, {name: getattr(net["weighting"], name) for name in constants})
    again = AveragedModel(host(make, steps=0), **options)
    assert again.load_state_dict(saved(average)) == ([], [])


def test_a_task_that_is_off_stays_off_in_an_average():
    """A factor of zero, whose logarithm is minus infinity, is no NaN in a mean of buffers."""
    net = host(MAKERS["uncertainty, bounds"])
    net["weighting"] = UncertaintyWeighting(base_weights={"task0": 0.0}).bind(dict.fromkeys(NAMES, Gaussian()))
    average = AveragedModel(net, use_buffers=True)
    for step in range(5):
        train_step(net["weighting"], draw_losses(3, step), everywhere(3))
        average.update_parameters(net)
    weighted = average.module["weighting"].eval()(draw_losses(3), everywhere(3))
    assert weighted.weights[0] == 0.0
    assert weighted.weights[1:].gt(0).all()


@every
def test_casts_and_copies_of_the_module_keep_the_names(make):
    net, expected = host(make), saved(host(make))["weighting._extra_state"]
    for cast in (torch.float64, torch.float16, torch.bfloat16, torch.float32):
        assert_same(copy.deepcopy(net).to(cast).state_dict()["weighting._extra_state"], expected)
    assert copy.deepcopy(net).half()["weighting"].tasks == NAMES


@every
def test_functional_call_takes_parameters_and_buffers(make):
    weighting = host(make)["weighting"].eval()
    own = {name: value for name, value in weighting.state_dict().items() if not name.startswith("foreign_")}
    losses, present = draw_losses(3), everywhere(3)
    assert_same(functional_call(weighting, own, (losses, present)).total, weighting(losses, present).total)
