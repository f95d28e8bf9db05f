import copy
import random
from contextlib import nullcontext
from enum import Enum
from functools import partial

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.utilities import CombinedLoader
from torch import nn
from torchmetrics import MeanMetric

from lightning_uncertainty import FixedWeighting, adopt
from lightning_uncertainty.adoption import describe, unadopt
from tests._nets import trainer
from tests.adoption._hosts import PARTS, TASKS, Host, host_of, rows, seeded, squares
from tests.adoption.test_adopting import Loader, Other


def names_of(found):
    return {name for candidate in found.candidates for name in candidate.names}


@pytest.mark.parametrize("kind", PARTS)
def test_what_can_be_named_is_listed(kind):
    host = host_of(kind)
    before = copy.deepcopy(host.state_dict())
    found = describe(host.double(), rows()[0])
    listed = names_of(found)
    for part in PARTS[kind].values():
        named = {part, f"{part}@0", f"{part}@1", part.replace("criteria@1", "criteria@0")}
        assert listed & named, (part, listed)
    assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())
    assert type(host) is Host
    shown = str(found)
    assert "What Host could be adopted by" in shown
    assert "log:depth_loss" in shown
    assert "log:number names no part: it is a number" in shown
    assert "log:train_loss names no part: it is the loss itself" in shown


def test_every_part_that_is_listed_can_be_adopted():
    found = describe(Host().double(), rows()[0])
    near, tall, *others = found.candidates
    assert {other.names for other in others} == {("weight:vector[0]",), ("weight:vector[1]",)}  # of the weighted ones
    assert near.weight == pytest.approx(0.5)
    assert tall.weight == pytest.approx(0.02)
    assert found.total == pytest.approx(near.loss * near.weight + tall.loss * tall.weight)
    for first in near.names:
        for second in tall.names:
            host = adopt(Host().double(), TASKS, {"depth": first, "height": second}, keep_host_weights=True)
            with pytest.warns(UserWarning, match="reference is not registered"):
                assert host.training_step(rows()[0], 0).requires_grad


def test_an_adopted_module_a_loader_and_the_other_namespace():
    host = adopt(Host().double(), TASKS, PARTS["log"])
    found = describe(host, torch.utils.data.DataLoader(rows(), batch_size=None))
    assert names_of(found) >= {"log:depth_loss", "log:height_loss"}
    unadopt(host)
    assert names_of(describe(Other(), rows()[0])) >= {"log:depth_loss", "log:height_loss"}

    class Data(LightningDataModule):
        def train_dataloader(self):
            return Loader(rows())

    assert names_of(describe(host, Data())) == names_of(found)
    loader = torch.utils.data.DataLoader(rows(), batch_size=None)
    assert names_of(describe(Joined().double(), [loader, loader])) >= {"log:depth_loss"}
    assert names_of(describe(Loading().double())) >= {"log:depth_loss"}


class Joined(Host):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch[0], batch_idx)


class Loading(Host):
    """Has a loader of its own, logs to the logger itself, and keeps what it made."""

    kept = None

    def train_dataloader(self):
        return Loader(rows())

    def training_step(self, batch, batch_idx):
        self.logger.experiment.add_scalar("number", 3.0)
        self.kept = super().training_step(batch, batch_idx)
        return self.kept


class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return rows()[index]


def unlike_anything():
    """Return a class of loaders that nobody knows."""
    return type("Pipe", (), {"__iter__": lambda self: iter(rows())})()


@pytest.mark.parametrize(
    "data",
    [
        rows,
        lambda: tuple(rows()),
        lambda: Loader(rows()),
        lambda: iter(rows()),
        lambda: (batch for batch in rows()),
        lambda: iter(torch.utils.data.DataLoader(rows(), batch_size=None)),
        Samples,
        unlike_anything,
    ],
    ids=["list", "tuple", "loader", "iterator", "generator", "iterator of a loader", "dataset", "iterable"],
)
def test_data_are_what_a_fit_takes_or_a_batch(data):
    host = seeded(Host)
    host.trunk[2].p = 0.0
    assert str(describe(host, data())) == str(describe(host, rows()[0]))


def test_several_loaders():
    loader = torch.utils.data.DataLoader(rows(), batch_size=None)
    assert names_of(describe(Joined().double(), CombinedLoader([loader, loader]))) >= {"log:depth_loss"}


def test_an_iterator_gives_one_batch_away():
    batches = iter(rows())
    describe(Host().double(), batches)
    assert len(list(batches)) == 3


@pytest.mark.parametrize(
    ("data", "kind", "error"),
    [(torch.zeros(3), "Tensor", "TypeError"), (Loader([3.0]), "Loader", "TypeError"), ({"y": 1}, "dict", "KeyError")],
)
def test_data_that_a_step_fails_of_are_told(data, kind, error):
    with pytest.raises(RuntimeError, match=f"found that Host raises {error} on a {kind} as its batch: .* one batch"):
        describe(Host(), data)


def test_what_else_fails_is_not_said_of_the_batch():
    class Unready(Host):
        def configure_optimizers(self):
            raise ValueError("no optimizer today")

    with pytest.raises(ValueError, match="no optimizer today"):
        describe(Unready().double(), rows())
    with pytest.raises(RuntimeError, match="describe should be given a batch: found an empty Samples"):
        describe(Host(), type("Samples", (Samples,), {"__iter__": lambda self: iter(())})())


def test_a_host_that_never_steps_is_looked_at_once():
    class Resting(Manual):
        def training_step(self, batch, batch_idx):
            self.manual_backward(self.made(batch["x"]).square().mean())

    assert describe(Resting(), torch.utils.data.DataLoader(rows(), batch_size=None)).total > 0
    with pytest.raises(RuntimeError, match="a host's step should make a loss"):
        describe(Resting(), torch.utils.data.DataLoader([None, None], batch_size=None))


def test_a_module_that_keeps_a_graph_is_told():
    host = Loading().double()
    trainer(logger=DummyLogger()).fit(host)
    with pytest.raises(RuntimeError, match=r"found one that cannot be copied: .*; give one that was just built"):
        describe(host)


class Manual(LightningModule):
    """Two optimizers; the second's loss has no part of the first's; it logs numbers."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.made, self.judge = nn.Linear(4, 2).double(), nn.Linear(2, 1).double()
        self.strength = 0.3

    def training_step(self, batch, batch_idx):
        made = self.made(batch["x"])
        first, second = self.optimizers()
        near, tall = (made[:, 0] - batch["depth"]).abs().mean(), (made[:, 1] - batch["height"]).square().mean()
        self.log("near", near.item())
        total = near + self.strength * tall
        first.zero_grad()
        self.manual_backward(total)
        first.step()
        second.zero_grad()
        self.manual_backward(self.judge(made.detach()).square().mean())
        second.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), 0.01) for part in (self.made, self.judge)]


def test_manual_optimization():
    found = describe(Manual(), rows()[0])
    listed = names_of(found)
    assert {"log:near", "weight:strength"} <= listed
    assert found.unusable["near"] == "it is logged as a number, unless you say follow=True"


class Extra(Manual):
    """Keeps more than tensors in its state, as metrics may."""

    def get_extra_state(self):
        return {"seen": 1}

    def set_extra_state(self, state):
        assert state == {"seen": 1}


def test_a_state_may_hold_more_than_tensors():
    assert {"log:near", "weight:strength"} <= names_of(describe(Extra(), rows()[0]))


def test_a_step_without_a_loss_is_told():
    class Lossless(Host):
        def training_step(self, batch, batch_idx):
            return None

    with pytest.raises(RuntimeError, match="a host's step should make a loss: found none in Lossless"):
        describe(Lossless(), rows()[0])
    with pytest.raises(TypeError, match="takes a LightningModule"):
        describe(nn.Linear(1, 1), rows()[0])


class Drawing(Host):
    """Draws from every generator, and changes the batch in place."""

    def training_step(self, batch, batch_idx):
        batch["x"].mul_(random.random() + np.random.rand() + torch.rand(()))  # noqa: NPY002
        return super().training_step(batch, batch_idx)


def drawn_by_numpy():
    return np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize("fails", [False, True])
def test_a_look_draws_nothing_and_leaves_no_trace(fails):
    host, batches = Drawing().double(), rows()
    host.trunk = torch.compile(host.trunk, backend="aot_eager")
    if fails:
        batches = [{name: value for name, value in batch.items() if name != "height"} for batch in batches]
    loader = torch.utils.data.DataLoader(batches, batch_size=None, shuffle=True)
    before = [batch["x"].clone() for batch in batches]
    states = torch.get_rng_state(), random.getstate(), drawn_by_numpy()
    if fails:
        with pytest.raises(KeyError):
            describe(host, loader)
    else:
        assert {"weight:scale.value", "weight:weights[0]"} <= names_of(describe(host, loader))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), drawn_by_numpy()) == states[1:]
    assert all(torch.equal(batch["x"], old) for batch, old in zip(batches, before, strict=True))


class Own(str, Enum):
    NEAR = "near loss"


class Named(Host):
    """Returns its losses under names of its own, and logs a metric."""

    def __init__(self):
        super().__init__()
        self.metric = MeanMetric()

    def named(self, batch):
        near, tall = self.losses(batch)
        return {Own.NEAR: near, "tall": tall}

    def training_step(self, batch, batch_idx):
        losses = self.named(batch)
        self.metric(losses["tall"].detach())
        self.log("mean", self.metric)
        return losses[Own.NEAR] + losses["tall"]


def test_names_of_entries_are_as_they_are_read():
    found = describe(Named().double(), rows()[0])
    assert {"call:named@0['near loss']", "call:named@0['tall']"} <= names_of(found)
    assert found.unusable["mean"] == "it is a MeanMetric"
    parts = {"depth": "call:named@0['near loss']", "height": "call:named@0['tall']"}
    with pytest.warns(UserWarning, match="reference is not registered"):
        adopt(Named().double(), TASKS, parts).training_step(rows()[0], 0)


def test_a_host_that_steps_by_itself_is_looked_at_before_that():
    found = describe(Manual(), rows()[0])
    (near,) = [candidate for candidate in found.candidates if "log:near" in candidate.names]
    (tall,) = [candidate for candidate in found.candidates if "weight:strength" in candidate.names]
    assert near.loss + 0.3 * tall.loss == pytest.approx(found.total)


def test_a_host_may_be_run_by_a_trainer_of_its_own():
    steps = []

    def run(host):
        host.register_forward_pre_hook(lambda *args: None)
        fit = trainer(max_epochs=5, limit_train_batches=3)
        try:
            fit.fit(host, Loader(rows()))
        finally:
            steps.append(fit.global_step)

    found = describe(Host().double(), run=run)
    assert names_of(found) >= {"log:depth_loss", "log:height_loss"}
    assert steps == [0]


class Holding(Host):
    """Holds a function where nobody looks, calls forward itself, and changes its batch."""

    def __init__(self):
        super().__init__()
        self.kept, self.beta = {"squares": squares}, 0.25

    def training_step(self, batch, batch_idx):
        depth, height = batch.pop("depth"), batch["height"].div_(2.0)
        made = self.head(self.trunk(batch["x"]))
        return self.far.forward(made[:, 0], depth) + self.beta * self.kept["squares"](made[:, 1], height)


def test_what_is_listed_can_be_named():
    batch = rows()[0]
    before = {name: value.clone() for name, value in batch.items()}
    found = describe(Holding().double(), batch)
    near, tall = found.candidates
    assert set(near.names) == {"call:far.forward@0", "function:torch.nn.functional.l1_loss@0"}
    assert set(tall.names) == {"weight:beta", "call:kept['squares']@0", "function:torch.nn.functional.mse_loss@0"}
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[name], value) for name, value in before.items())


class Keeping(Host):
    """Keeps functions in every way, and calls one of them by two ways."""

    def __init__(self):
        super().__init__()
        self.alone, self.steps, self.table = squares, [self.tall, self.tall_too], {0: partial(squares)}

    def tall(self, made, label):
        return (made - label).abs().mean()

    def tall_too(self, made, label):
        return (made - label).square().sum()

    def training_step(self, batch, batch_idx):
        made, label = self.head(self.trunk(batch["x"])), batch["height"]
        total = self.tall(made[:, 0], label) + 2 * self.steps[0](made[:, 1], label)
        total = total + 3 * self.steps[1](made[:, 1], label)
        return total + 5 * self.alone(made[:, 0], label) + 7 * self.table[0](made[:, 1], label)


def test_a_look_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    describe(seeded(Host), rows()[0])
    describe(seeded(Host), Loader(rows()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("kind", [Holding, Keeping])
def test_every_name_that_is_listed_leads_to_its_loss(kind):
    host = seeded(kind)
    host.trunk[2].p = 0.0
    found = describe(host, rows()[0])
    names = names_of(found)
    if kind is Keeping:
        assert {"call:alone@0", "call:table[0]@0", "call:steps[0]@0", "call:steps[1]@0", "call:tall@0"} <= names
        assert sum(part.weight for part in found.candidates) == pytest.approx(18)
    for part in found.candidates:
        for name in part.names:
            weighting = FixedWeighting()
            adopted = adopt(copy.deepcopy(host), {"it": "generic"}, {"it": name}, rest="plain", weighting=weighting)
            batch = rows()[0]
            total = float(adopted.training_step(batch, 0))
            assert total == pytest.approx(found.total + (1 - part.weight) * part.loss), name


class Kept:
    def __init__(self, log):
        self.log = log


class Unheard(Keeping):
    def __init__(self):
        super().__init__()
        self.kept = Kept(self.log)

    def training_step(self, batch, batch_idx):
        total = super().training_step(batch, batch_idx)
        self.kept.log("kept", total)
        return total + self.far.forward(self.head(self.trunk(batch["x"]))[:, 0], batch["depth"])


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("function:tests.adoption._hosts.squares", "and not what the host holds, which is a call:"),
        ("call:tall_too", "and not a method that is kept elsewhere"),
        ("call:far", "nor a module's forward"),
        ("log:kept", "and not to one that was kept before"),
    ],
)
def test_what_is_called_by_another_way_is_not_listed_and_told(name, why):
    listed = names_of(describe(seeded(Unheard), rows()[0]))
    assert not any(one.partition("@")[0] == name for one in listed)
    with pytest.raises(RuntimeError, match=f"'{name}' was never reached .*{why}"):
        adopt(seeded(Unheard), {"it": "constant"}, {"it": name}, rest="plain").training_step(rows()[0], 0)


class Joining(Host):
    """Makes a total of its losses in a way of its own."""

    def __init__(self, join):
        super().__init__()
        self.join, self.s = join, nn.Parameter(torch.zeros(2))

    def training_step(self, batch, batch_idx):
        near, tall = self.losses(batch)
        self.log_dict({"near": near, "tall": tall})
        return self.join(near, tall, self.s)


CURVED, UNUSED, TRAINED = "is not linear in it", "its weight is 0", "the host trains its weight"
JOINS = {
    "root of a product": (lambda a, b, s: (a * b).sqrt(), {"near": CURVED, "tall": CURVED}),
    "product": (lambda a, b, s: a * b, {"near": CURVED, "tall": CURVED}),
    "norm": (lambda a, b, s: torch.stack([a, b]).norm(), {"near": CURVED, "tall": CURVED}),
    "logarithms": (lambda a, b, s: a.log() + b.log(), {"near": CURVED, "tall": CURVED}),
    "one root": (lambda a, b, s: a + b.sqrt(), {"tall": CURVED}),
    "maximum": (lambda a, b, s: torch.maximum(a, b), {"near": UNUSED}),
    "one switched off": (lambda a, b, s: a + 0 * b, {"tall": UNUSED}),
    "learnt weights": (
        lambda a, b, s: (a * (-s[0]).exp() + b * (-s[1]).exp()) + s.sum(),
        {"near": TRAINED, "tall": TRAINED},
    ),
    "weights of the losses' size": (lambda a, b, s: a / a.detach() + b / b.detach(), {}),
    "sum": (lambda a, b, s: 3 * a + 0.1 * b, {}),
}


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("join", JOINS)
def test_it_says_what_adopt_would_refuse(join):
    total, expected = JOINS[join]
    found = describe(Joining(total).double(), rows()[0])
    shown = str(found)
    assert found.notes.keys() == {f"log:{name}" for name in expected}
    listed = names_of(found)
    for name in ("near", "tall"):
        why = expected.get(name, "")
        assert why in found.notes.get(f"log:{name}", "")
        assert not why or why in shown
        assert (f"log:{name}" in listed) == (why != CURVED)
        assert name not in found.unusable
        host = adopt(Joining(total).double(), {"task": "gaussian"}, {"task": f"log:{name}"}, rest="plain")
        with pytest.raises(RuntimeError, match="a host") if why else nullcontext():
            host.training_step(rows()[0], 0)
