"""Checkpoints of other tasks, of another weighting and of the model before it was weighed: loaded, and resumed."""

import warnings

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.nn import functional as F

from lightning_uncertainty import FixedWeighting, MultiTaskMixin, Task, UncertaintyMonitor
from tests._nets import dicts, tensors, trainer
from tests.trainer._resume import bits
from tests.trainer._weightings import FOLLOWING, WEIGHTINGS

FACTORS = {"depth": 1.0, "size": 30.0, "big": 30.0, "new": 0.1}  # labels are depth's, in other units


def loader():
    """Always the same batches."""
    torch.manual_seed(1)
    return dicts()


def label(batch, task):
    return FACTORS[task] * batch["depth"]


class Net(MultiTaskMixin, LightningModule):
    """Tasks of one shape, so that nothing but their names tells them apart."""

    def __init__(self, *tasks, weighting="UncertaintyWeighting", grouped=True, **options):
        super().__init__()
        self.trunk, self.grouped = nn.Linear(4, 8), grouped
        own = {name: Task("gaussian", nn.Linear(8, 1), lambda batch, name=name: label(batch, name)) for name in tasks}
        weighting = WEIGHTINGS[weighting]() if isinstance(weighting, str) else weighting
        self.register_tasks(own, weighting=weighting, **options)

    def training_step(self, batch, batch_idx):
        return self.task_step(self.trunk(batch["x"]).tanh(), batch, "train")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameter_groups(lr=1e-2) if self.grouped else self.parameters(), lr=1e-2)


class Before(LightningModule):
    """The same model, whose losses are summed."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        self.task_heads = nn.ModuleDict({"depth": nn.Linear(8, 1), "size": nn.Linear(8, 1)})

    def training_step(self, batch, batch_idx):
        features = self.trunk(batch["x"]).tanh()
        return sum(F.mse_loss(head(features)[:, 0], label(batch, name)) for name, head in self.task_heads.items())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Paths of checkpoints, by weighting."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints")
    nets = {name: Net("depth", "size", weighting=name) for name in WEIGHTINGS} | {"before": Before()}
    for name, net in nets.items():
        fit = trainer(max_epochs=2)
        fit.fit(net, loader())
        fit.save_checkpoint(folder / f"{name}.ckpt")
    return lambda name: folder / f"{name}.ckpt"


def load(path, *tasks, strict=True, **options):
    """Load as `load_from_checkpoint` does, with positional tasks; return the module, and what was warned of."""
    kind = type("Loaded", (Net,), {"__init__": lambda self: Net.__init__(self, *tasks, **options)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net = kind.load_from_checkpoint(path, strict=strict, weights_only=True)
    messages = [str(warning.message) for warning in caught]  # Lightning has one of its own where strict is False
    return net, [message for message in messages if message.startswith("the checkpoint ")]


def resume(path, *tasks, callbacks=(), **options):
    net = Net(*tasks, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the checkpoint ")
        trainer(max_epochs=3, callbacks=list(callbacks)).fit(net, loader(), ckpt_path=path)
    return net


def train(net, epochs=1):
    fit = trainer(max_epochs=epochs, callbacks=[UncertaintyMonitor(table=False)])
    fit.fit(net, loader())
    return fit


# -- other tasks -------------------------------------------------------------------------------------------------------

OTHERS = {
    "reordered": (("size", "depth"), {}, True, []),
    "added": (("depth", "new", "size"), {}, False, ["the checkpoint knows the tasks depth, size: new start anew"]),
    "removed": (("size",), {}, False, ["the checkpoint knows the tasks depth, size: depth are dropped"]),
    "renamed": (("depth", "big"), {"renamed": {"size": "big"}}, True, []),
    "renamed and reordered": (("big", "depth"), {"renamed": {"size": "big"}}, True, []),
}


@pytest.mark.parametrize("change", OTHERS)
def test_tasks_load_by_name_and_train_on(change, saved):
    tasks, options, strict, expected = OTHERS[change]
    old, _ = load(saved("UncertaintyWeighting"), "depth", "size")
    net, warned = load(saved("UncertaintyWeighting"), *tasks, strict=strict, **options)
    assert warned == expected
    older = {new: old for old, new in options.get("renamed", {}).items()}
    for name in tasks:
        if name != "new":
            assert net.sigma()[name] == old.sigma()[older.get(name, name)]
            assert bits(net.task_heads[name].state_dict()) == bits(old.task_heads[older.get(name, name)].state_dict())
    assert train(net).global_step == 4
    assert set(net.sigma()) == set(tasks)


@pytest.mark.parametrize(
    ("tasks", "keys"),
    [(("depth", "size", "new"), "Missing.*task_heads.new"), (("size",), "Unexpected.*task_heads.depth")],
)
def test_heads_that_come_and_go_are_named_by_torch(tasks, keys, saved):
    with pytest.raises(RuntimeError, match=rf"(?s){keys}"):
        load(saved("UncertaintyWeighting"), *tasks)
    with pytest.raises(RuntimeError, match=rf"(?s){keys}"):
        resume(saved("UncertaintyWeighting"), *tasks)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("monitored", [True, False])
def test_tasks_in_another_order_do_not_resume(weighting, monitored, saved):
    """The heads' moments would be crossed, whatever the weighting learns."""
    callbacks = [UncertaintyMonitor()] if monitored else []
    with pytest.raises(RuntimeError, match="a checkpoint of other tasks cannot be resumed"):
        resume(saved(weighting), "size", "depth", weighting=weighting, callbacks=callbacks)


# -- another weighting -------------------------------------------------------------------------------------------------

EXPORTS_NOTHING = [*FOLLOWING, "GradientBalancing"]
WITHOUT = ["before", "FixedWeighting", "SoftOptimalUncertaintyWeighting", "GeometricLossWeighting"]  # without a state


@pytest.mark.parametrize("kind", WITHOUT)
@pytest.mark.parametrize("weighting", ["UncertaintyWeighting", "AnalyticUncertaintyWeighting"])
def test_without_log_variances_a_checkpoint_loads_with_one_warning_and_sigma_starts_from_data(kind, weighting, saved):
    net, warned = load(saved(kind), "depth", "size", weighting=weighting)
    (warning,) = warned
    assert f"has nothing of {net.task_weighting!r}, so its tasks start anew: depth, size" in warning
    assert bits(net.trunk.state_dict()["weight"]) == bits(torch.load(saved(kind))["state_dict"]["trunk.weight"])
    batch = next(iter(loader()))
    with torch.no_grad():
        outputs = {name: head(net.trunk(batch["x"]).tanh())[:, 0] for name, head in net.task_heads.items()}
    net.training_step(batch, 0)
    rmse = {name: F.mse_loss(output, label(batch, name)).sqrt().item() for name, output in outputs.items()}
    assert net.sigma() == pytest.approx(rmse)


@pytest.mark.parametrize("kind", WITHOUT)
@pytest.mark.parametrize(
    ("grouped", "message"), [(True, "different number of parameter groups"), (False, "doesn't match the size of optim")]
)
def test_without_log_variances_a_checkpoint_does_not_resume(kind, grouped, message, saved):
    """It is torch that refuses, as the optimizer's state has none for them."""
    with pytest.raises(ValueError, match=message):
        resume(saved(kind), "depth", "size", grouped=grouped)


def test_equal_weights_resume_a_plain_sum_and_go_on_as_if_it_still_were(saved):
    resumed, plain = Net("depth", "size", weighting=FixedWeighting()), Before()
    for net in (resumed, plain):
        trainer(max_epochs=3).fit(net, loader(), ckpt_path=saved("before"))
    for name, value in tensors(plain).items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "weighting", "found"),
    [
        ("UncertaintyWeighting", "FixedWeighting", "with .*offset"),
        ("UncertaintyWeighting", "AnalyticUncertaintyWeighting", "with .*offset"),
        ("AnalyticUncertaintyWeighting", "UncertaintyWeighting", "without .*offset"),
        ("UncertaintyWeighting", "GradientBalancing", "without balance and with .*offset"),
    ],
)
@pytest.mark.filterwarnings("ignore:the checkpoint is not of ")
def test_a_checkpoint_of_another_weighting_is_told_in_one_sentence(kind, weighting, found, saved):
    with pytest.raises(RuntimeError, match=rf"is not of {weighting}\(.*: found one {found}.*; take the weighting that"):
        load(saved(kind), "depth", "size", weighting=weighting)
    with pytest.raises(RuntimeError, match=rf"is not of {weighting}\(.*: found one {found}"):
        resume(saved(kind), "depth", "size", weighting=weighting)
    net, told = load(saved(kind), "depth", "size", weighting=weighting, strict=False)
    assert len(told) == (weighting != "FixedWeighting")
    old, _ = load(saved(kind), "depth", "size", weighting=kind)
    assert bits(net.task_heads.state_dict()) == bits(old.task_heads.state_dict())
    assert train(net).global_step == 4


# -- learnt weights as constants ---------------------------------------------------------------------------------------


def gradients_of(net, batch):
    """Gradients of the network, in evaluation, where a weighting keeps its σ."""
    net.eval()
    net.weigh(net.task_losses(net.task_outputs(net.trunk(batch["x"]).tanh()), batch)).backward()
    return {name: p.grad for name, p in net.named_parameters() if not name.startswith("task_weighting.")}


@pytest.mark.parametrize("kind", [name for name in WEIGHTINGS if name not in EXPORTS_NOTHING])
def test_learnt_weights_train_on_as_constants(kind, saved, tmp_path):
    tasks, batch = ("depth", "size"), next(iter(loader()))
    learnt, _ = load(saved(kind), *tasks, weighting=kind)
    constants = learnt.fixed_weighting()
    fixed, warned = load(saved(kind), *tasks, weighting=constants, strict=False)
    assert warned == []
    assert list(fixed.task_weighting.parameters()) == []
    torch.testing.assert_close(gradients_of(fixed, batch), gradients_of(learnt, batch))
    train(fixed.train()).save_checkpoint(tmp_path / "fixed.ckpt")
    again = learnt.fixed_weighting()
    resumed = resume(tmp_path / "fixed.ckpt", *tasks, weighting=again, callbacks=[UncertaintyMonitor(table=False)])
    assert repr(resumed.fixed_weighting()) == repr(fixed.fixed_weighting()) == repr(constants)


@pytest.mark.parametrize("kind", EXPORTS_NOTHING)
def test_weights_that_follow_each_batch_are_not_exported(kind, saved):
    net, _ = load(saved(kind), "depth", "size", weighting=kind)
    with pytest.raises(ValueError, match=r"weights should be learnt before they are exported.*depth, size"):
        net.fixed_weighting()
