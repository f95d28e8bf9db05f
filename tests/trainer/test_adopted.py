"""Every mode of the Trainer trains an adopted module as one whose step was written by hand."""

import gc
import weakref
from typing import ClassVar

import pytest
import torch
from pytorch_lightning import Callback, LightningModule
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_uncertainty import (
    AnalyticUncertaintyWeighting,
    MultiTaskMixin,
    UncertaintyMonitor,
    UncertaintyWeighting,
    adopt,
)
from lightning_uncertainty.balancing import GradientBalancing, GradNorm
from tests._nets import trainer
from tests.adoption._hosts import PARTS, TASKS, ByHand, Host, Loader, both, host_of, rows, seeded
from tests.trainer import _adopted_fsdp2
from tests.trainer._adopted import CELLS, fit
from tests.trainer._weightings import BALANCING, WEIGHTINGS

PROGRAM, SPAWN = "tests.trainer._adopted", "tests.trainer._adopted_spawn"
SHARDS = _adopted_fsdp2.__name__


# -- processes ---------------------------------------------------------------------------------------------------------


def close(found, expected, **tolerance):
    assert found["state"].keys() == expected["state"].keys()
    for name, value in expected["state"].items():
        torch.testing.assert_close(found["state"][name], value, equal_nan=True, msg=name, **tolerance)


@pytest.mark.cells(PROGRAM, "{cell}")
@pytest.mark.parametrize("cell", [pytest.param(cell, marks=[pytest.mark.smoke] * (cell == "log")) for cell in CELLS])
def test_two_processes_train_as_one(cell, found):
    expected = fit(cell)
    close(found(cell), expected, rtol=1e-9, atol=1e-9)
    assert found(cell)["skipped"] == expected["skipped"] == (3 if cell == "broken" else 0)
    assert len(found(cell)["rows"]) == len(expected["rows"]) > 0
    assert len(found(cell)["warned"]) == (cell != "counted")
    assert expected["warned"] == []


@pytest.mark.cells(SPAWN, "before")
def test_a_spawned_fit_gives_a_module_back_with_what_is_ours(found):
    close(found("before"), fit("log", before=True), rtol=1e-9, atol=1e-9)


@pytest.mark.cells(SPAWN, "callback")
def test_a_spawned_fit_gives_a_module_that_a_callback_adopted_back_as_the_host(found):
    expected = fit("log")
    own = [name for name in expected["state"] if name.startswith("task_")]
    close(
        found("callback"),
        {"state": {n: value for n, value in expected["state"].items() if n not in own}},
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.cells(SHARDS, "{cell}")
@pytest.mark.parametrize("cell", _adopted_fsdp2.CELLS)
def test_a_host_that_shards_itself_resumes_as_if_it_had_not_stopped(cell, found):
    whole, resumed = found(cell)["whole"], found(cell)["resumed"]
    close(resumed, whole, rtol=0, atol=0)
    assert resumed["sigma"] == whole["sigma"]
    close(whole, _adopted_fsdp2.fit(cell, 1, 2), rtol=1e-9, atol=1e-9)


# -- modes -------------------------------------------------------------------------------------------------------------


MODES = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "clipping": {"gradient_clip_val": 0.1},
    "clipping by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "double": {"precision": "64-true"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "no inference mode": {"inference_mode": False},
}


def fitted(net, **options):
    torch.manual_seed(2)
    monitor = UncertaintyMonitor(table=False)
    trainer(max_epochs=3, callbacks=[monitor], **options).fit(net, Loader(rows(16)))
    return {name: value.clone() for name, value in net.named_parameters()}, monitor.history.rows


@pytest.mark.parametrize("weighting", [AnalyticUncertaintyWeighting, UncertaintyWeighting])
@pytest.mark.parametrize("kind", ["log", "weight", "call", "function"])
@pytest.mark.parametrize("mode", MODES)
def test_modes(mode, kind, weighting):
    hosts = [adopt(host_of(kind), TASKS, PARTS[kind], weighting=weighting()), seeded(ByHand, weighting())]
    found, expected = (fitted(host, **MODES[mode]) for host in hosts)
    for name, value in expected[0].items():
        assert torch.equal(found[0][name], value), name
    assert found[1] == expected[1]


class Checkpointed(Host):
    """Computes its trunk, or its losses, again in backward."""

    def __init__(self, reentrant=False, losses=False):
        super().__init__()
        self.reentrant, self.again = reentrant, losses
        if not losses:
            self.trunk = Again(self.trunk)

    def training_step(self, batch, batch_idx):
        if not self.again:
            return super().training_step(batch, batch_idx)
        x = batch["x"].clone().requires_grad_()
        near, tall = checkpoint(lambda x: self.losses({**batch, "x": x}), x, use_reentrant=self.reentrant)
        self.log("depth_loss", near)
        self.log("height_loss", tall)
        return near + tall


@pytest.mark.parametrize("kind", ["log", "call", "function"])
@pytest.mark.parametrize("losses", [False, True])
def test_gradient_checkpointing(kind, losses):
    parts = {**PARTS, "call": both("call:far", "call:tall_of")}[kind]
    found, _ = fitted(adopt(seeded(Checkpointed, losses=losses), TASKS, parts))
    expected, _ = fitted(seeded(ByHand))
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9)


class Again(nn.Sequential):
    def __init__(self, inner):
        super().__init__(*inner)

    def forward(self, x):
        return checkpoint(super().forward, x.clone().requires_grad_(), use_reentrant=False)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_part_within_a_reentrant_checkpoint_is_told():
    host = adopt(seeded(Checkpointed, reentrant=True, losses=True), TASKS, PARTS["function"])
    with pytest.raises(RuntimeError, match="was seen as a Tensor without graph"):
        trainer().fit(host, Loader(rows()))


class Energy(LightningModule):
    """Forces are the gradient of the energy by positions: its backward goes twice through the network."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.outputs = [{"weight": 0.01}, {"weight": 0.99}]

    def losses(self, batch):
        x = batch["x"].clone().requires_grad_()
        energy = self.net(x)[:, 0]
        (forces,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return (energy - batch["height"]).square().mean(), (forces + batch["x"]).square().mean()

    def training_step(self, batch, batch_idx):
        energy, forces = self.losses(batch)
        self.log("energy", energy)
        self.log("forces", forces)
        return self.outputs[0]["weight"] * energy + self.outputs[1]["weight"] * forces

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class EnergyByHand(MultiTaskMixin, Energy):
    def __init__(self):
        super().__init__()
        self.register_tasks(dict.fromkeys(("energy", "forces"), "gaussian"), weighting=AnalyticUncertaintyWeighting())

    def training_step(self, batch, batch_idx):
        energy, forces = self.losses(batch)
        return self.weigh({"energy": energy, "forces": forces})


@pytest.mark.parametrize(
    "parts",
    [
        {"energy": "log:energy", "forces": "log:forces"},
        {"energy": "weight:outputs[0]['weight']", "forces": "weight:outputs[1]['weight']"},
    ],
)
def test_double_backward_in_the_host(parts):
    found, _ = fitted(adopt(seeded(Energy), dict.fromkeys(parts, "gaussian"), parts))
    expected, _ = fitted(seeded(EnergyByHand))
    for name, value in expected.items():
        assert torch.equal(found[name], value)


class Adversarial(Host):
    """A generator of two losses and a judge, each with an optimizer; the judge is first."""

    def __init__(self, by_hand=False):
        super().__init__()
        self.automatic_optimization = False
        self.judge = nn.Linear(1, 1)
        self.by_hand = by_hand

    def training_step(self, batch, batch_idx):
        generator, judge = self.optimizers()
        near, tall = self.losses(batch)
        judge.zero_grad()
        self.manual_backward(self.judge(near.detach().reshape(1, 1)).square().mean())
        judge.step()
        if batch_idx % 2 == 0:  # the judge's step comes first
            return
        generator.zero_grad()
        if self.by_hand:
            self.manual_backward(self.weigh({"depth": near, "height": tall}))
        else:
            self.log("depth_loss", near)
            self.log("height_loss", tall)
            self.manual_backward(self.weights[0] * near + self.scale.value * tall)
        generator.step()

    def configure_optimizers(self):
        return [
            torch.optim.Adam([*self.trunk.parameters(), *self.head.parameters()], 1e-2),
            torch.optim.SGD(self.judge.parameters(), 0.01),
        ]


class AdversarialByHand(MultiTaskMixin, Adversarial):
    def __init__(self):
        super().__init__(by_hand=True)
        self.register_tasks(TASKS, weighting=AnalyticUncertaintyWeighting())


@pytest.mark.parametrize("kind", ["log", "weight", "call", "function"])
def test_manual_optimization_with_two_optimizers(kind):
    parts = {**PARTS, "call": both("call:far", "call:tall_of")}[kind]
    found, rows_found = fitted(adopt(seeded(Adversarial), TASKS, parts))
    expected, rows_expected = fitted(seeded(AdversarialByHand))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert rows_found == rows_expected


def test_a_network_that_is_compiled():
    host, by_hand = adopt(seeded(Host), TASKS, PARTS["mixed"]), seeded(ByHand)
    for net in (host, by_hand):
        net.trunk[2] = nn.Identity()
        net.trunk = torch.compile(net.trunk, backend="aot_eager")
    found, expected = fitted(host), fitted(by_hand)
    for name, value in expected[0].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-9, atol=1e-9)


def near_of(made, label):
    return (made - label).abs().mean()


class CompiledParts(Host):
    """Has a network or losses that are compiled, in the way that is asked for."""

    def __init__(self, compiles):
        super().__init__()
        self.trunk = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LayerNorm(4)) for _ in range(6)])
        self.head = nn.Linear(4, 2)
        self.far, self.tall = nn.L1Loss(), nn.MSELoss()
        compiles(self)

    def losses(self, batch):
        made = self.head(self.trunk(batch["x"]))
        return self.both_of(made, batch)

    def both_of(self, made, batch):
        return self.far(made[:, 0], batch["depth"]), self.tall(made[:, 1], batch["height"])

    def own_losses(self, made, batch):
        return near_of(made[:, 0], batch["depth"]), self.tall(made[:, 1], batch["height"])


def whole_network(host):
    host.trunk.compile(backend="aot_eager")


def both_losses(host):
    host.both_of = torch.compile(host.both_of, backend="aot_eager")


def each_loss(host):
    for loss in (host.far, host.tall):
        loss.compile(backend="aot_eager")


def with_own_function(host):
    host.both_of = torch.compile(host.own_losses, backend="aot_eager")


FUNCTIONS = both("function:torch.nn.functional.l1_loss", "function:torch.nn.functional.mse_loss")
COMPILED = {
    "a network, functions": (whole_network, FUNCTIONS, {}, 0),
    "a network, followed": (whole_network, PARTS["log"], {"follow": True}, 0),
    "losses, functions": (both_losses, FUNCTIONS, {}, 2),
    "losses, followed": (both_losses, PARTS["log"], {"follow": True}, 0),
    "each loss, functions": (each_loss, FUNCTIONS, {}, 0),
    "each loss, calls": (each_loss, both("call:far", "call:tall"), {}, 2),
    "own functions": (with_own_function, both(f"function:{__name__}.near_of", FUNCTIONS["height"]), {}, 4),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own, of what it is given
@pytest.mark.parametrize("name", COMPILED)
def test_what_is_compiled_is_compiled_once_beside_what_watches_it(name):
    compiles, parts, options, breaks = COMPILED[name]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    host = adopt(seeded(CompiledParts, compiles), TASKS, parts, **options)
    plain = adopt(seeded(CompiledParts, lambda net: None), TASKS, PARTS["log"])
    found = fitted(host)
    counters = torch._dynamo.utils.counters
    assert sum(counters["graph_break"].values()) <= breaks
    assert counters["frames"]["total"] <= 10
    assert counters["stats"]["unique_graphs"] <= 4
    expected = fitted(plain)
    for key, value in expected[0].items():
        torch.testing.assert_close(found[0][key], value, rtol=1e-9, atol=1e-9)


# -- weightings, memory ------------------------------------------------------------------------------------------------


class Sharing(ByHand):
    def shared_parameters(self):
        return list(self.trunk.parameters())


def weighting_of(name):
    """One of every class; those that look at gradients look at parameters, as no features are told apart."""
    if name in BALANCING:
        return {"GradNorm": GradNorm, "GradientBalancing": GradientBalancing}[name](on="parameters")
    return WEIGHTINGS[name]()


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting(name):
    found = fitted(adopt(seeded(Host), TASKS, PARTS["log"], weighting=weighting_of(name), shared="trunk"))
    expected = fitted(seeded(Sharing, weighting_of(name)))
    for parameter, value in expected[0].items():
        assert torch.equal(found[0][parameter], value), parameter
    assert found[1] == expected[1]


@pytest.mark.parametrize("weighting", [GradNorm, GradientBalancing])
def test_gradients_that_cannot_be_seen_are_told(weighting):
    for options, shared in (({}, "trunk"), ({"on": "parameters"}, None)):
        with pytest.raises(ValueError, match=rf"say {weighting.__name__}\(on='parameters'\) and name the modules"):
            adopt(seeded(Host), TASKS, PARTS["log"], weighting=weighting(**options), shared=shared)
    with pytest.raises(ValueError, match="shared should name modules of the host: found no stem"):
        adopt(seeded(Host), TASKS, PARTS["log"], weighting=weighting(on="parameters"), shared=["trunk", "stem"])


class Token:
    """Lives as long as the graph of a step."""


class Marked(torch.autograd.Function):
    alive: ClassVar = weakref.WeakSet()

    @staticmethod
    def forward(ctx, made):
        ctx.token = Token()
        Marked.alive.add(ctx.token)
        return made.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@pytest.mark.parametrize("kind", PARTS)
def test_no_graph_outlives_its_step(kind):
    host, kept = adopt(host_of(kind), TASKS, PARTS[kind], follow=kind == "log"), []

    class Keep(Callback):
        def on_train_batch_end(self, *args):
            gc.collect()
            kept.append(len(Marked.alive))

    handle = host.head.register_forward_hook(lambda module, args, made: Marked.apply(made))
    torch.manual_seed(2)
    trainer(callbacks=[Keep()]).fit(host, Loader(rows(16)))
    handle.remove()
    assert kept == [0] * 8
