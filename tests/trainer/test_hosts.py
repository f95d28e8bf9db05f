"""Where a module with tasks is not what a Trainer runs: Fabric, a plain loop, a part of another module."""

import copy
import weakref

import pytest
import torch
from lightning_fabric import Fabric
from pytorch_lightning import LightningModule
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanAbsoluteError

from lightning_uncertainty import (
    GradientConflictMonitor,
    MultiTaskMixin,
    Task,
    UncertaintyMonitor,
    UncertaintyWarmUp,
    own_group,
)
from lightning_uncertainty.balancing import GradientBalancing
from tests._nets import columns, tensors, trainer

ROWS = 8


class Tasks(MultiTaskMixin):
    """Built like a LightningModule or a plain module."""

    def __init__(self, weighting=None, **options):
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        heads = {"depth": nn.Linear(8, 1), "height": nn.Linear(8, 1)}
        metrics = {"depth": MeanAbsoluteError(), "height": None}
        tasks = {name: Task("gaussian", head=head, metrics=metrics[name]) for name, head in heads.items()}
        self.register_tasks(tasks, weighting=weighting, **options)

    def step(self, batch, stage):
        labels = {"depth": batch["depth"], "height": 5 * batch["x"][:, 1]}
        return self.task_step(self.trunk(batch["x"]).tanh(), labels, stage)


class Plain(Tasks, nn.Module):
    pass


class Lightning(Tasks, LightningModule):
    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameter_groups(lr=1e-2))


class Around(LightningModule):
    """Runs a part that has the tasks, below whatever lies in between."""

    def __init__(self, net, between=lambda net: net):
        super().__init__()
        self.between = between(net)
        self.found = [net]

    def training_step(self, batch, batch_idx):
        return self.found[0].step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.found[0].step(batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.found[0].parameter_groups(lr=1e-2))


def batches():
    torch.manual_seed(1)
    whole = columns(4 * ROWS)
    parts = [{name: column[i : i + ROWS] for name, column in whole.items()} for i in range(0, 4 * ROWS, ROWS)]
    return DataLoader(parts, batch_size=None)


def make(kind, weighting=None, **options):
    torch.manual_seed(0)
    return kind(weighting, **options)


def in_a_loop(net, optimizer, step=None, backward=None):
    step, backward = step or net.step, backward or (lambda total: total.backward())
    for _ in range(2):
        for batch in batches():
            optimizer.zero_grad()
            backward(step(batch, "train"))
            optimizer.step()
    for batch in batches():
        step(batch, "val")
    return net


def fit(module, *callbacks, **options):
    fitted = trainer(max_epochs=2, callbacks=list(callbacks), log_every_n_steps=1, num_sanity_val_steps=0, **options)
    fitted.fit(module, batches(), batches())
    return fitted


@pytest.fixture(scope="module")
def expected():
    net, monitor = make(Lightning), UncertaintyMonitor(table=False)
    fitted = fit(net, monitor)
    return tensors(net), {key: value.item() for key, value in fitted.callback_metrics.items()}, monitor


def assert_equal(net, expected):
    torch.testing.assert_close(tensors(net), expected[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("kind", [Plain, Lightning])
def test_a_plain_loop_trains_as_a_trainer_does(kind, expected):
    net = make(kind)
    in_a_loop(net, torch.optim.Adam(net.parameter_groups(lr=1e-2)))
    assert_equal(net, expected)
    assert net.task_metrics["val/depth/loss"].compute().item() > 0


@pytest.mark.parametrize("kind", [Plain, Lightning])
def test_fabric_trains_as_a_trainer_does(kind, expected):
    fabric, net = Fabric(accelerator="cpu"), make(kind)
    wrapped, optimizer = fabric.setup(net, torch.optim.Adam(net.parameter_groups(lr=1e-2)))
    wrapped.mark_forward_method("step")
    in_a_loop(net, optimizer, wrapped.step, fabric.backward)
    assert_equal(net, expected)


BETWEEN = {
    "a child": lambda net: net,
    "in a dict": lambda net: nn.ModuleDict({"parts": nn.ModuleList([net])}),
}


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
@pytest.mark.parametrize("kind", [Plain, Lightning])
@pytest.mark.parametrize("evaluating", [False, True])
def test_a_part_of_another_module_trains_is_logged_and_watched_as_if_it_was_the_module(
    kind, between, evaluating, expected
):
    net, monitor = make(kind), UncertaintyMonitor(table=False)
    module = Around(net, between).train(not evaluating)
    fitted = fit(module, monitor)
    assert_equal(net, expected)
    assert {key: value.item() for key, value in fitted.callback_metrics.items()} == expected[1]
    assert monitor.history.rows == expected[2].history.rows
    assert monitor.evaluations.rows == expected[2].evaluations.rows
    for run in (fitted.validate, fitted.test):
        if run is fitted.validate:
            [found] = run(module, batches(), verbose=False)
            assert found.keys() == {
                "val/depth/loss",
                "val/depth/MeanAbsoluteError",
                "val/height/loss",
                "val/balanced_loss",
            }


def test_without_the_monitor_a_plain_part_trains_and_logs_nothing(expected):
    module = Around(make(Plain))
    assert fit(module).callback_metrics == {}
    assert_equal(module.found[0], expected)


def test_copies_of_what_a_trainer_runs_know_of_none():
    module = Around(make(Plain))
    fit(module, UncertaintyMonitor(table=False))
    again = copy.deepcopy(module.found[0])
    assert again._task_fit.trainer is None


def test_all_callbacks_find_the_part():
    module = Around(make(Plain, GradientBalancing()))
    conflicts, warm_up = GradientConflictMonitor(every_n_steps=1), UncertaintyWarmUp(steps=3, blend_from={})
    fit(module, conflicts, warm_up)
    assert len(conflicts.history.rows) == 8
    assert module.found[0].task_weighting.blend is None


def test_a_part_that_skips_steps_silences_all_that_its_trainer_runs():
    class Adding(Around):
        def training_step(self, batch, batch_idx):
            total = super().training_step(
                {**batch, "depth": batch["depth"] + [0, torch.inf][batch_idx == 1]}, batch_idx
            )
            return total + self.more.square().sum()

    module = Adding(make(Lightning, on_nonfinite="skip_step"))
    module.more = nn.Parameter(torch.ones(3))
    module.configure_optimizers = lambda: torch.optim.Adam(module.parameters(), 1e-2)
    with pytest.warns(UserWarning, match="a training step is skipped"):
        fitted = fit(module)
    assert {state["step"].item() for state in fitted.optimizers[0].state.values()} == {6}


class Two(LightningModule):
    def __init__(self):
        super().__init__()
        self.one, self.other = make(Plain), make(Lightning)

    def training_step(self, batch, batch_idx):
        return self.one.step(batch, "train") + self.other.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.one.step(batch, "val")

    def configure_optimizers(self):
        with own_group(self.one.task_weighting), own_group(self.other.task_weighting):
            return torch.optim.Adam(self.parameters(), 1e-2)


class Untasked(Two):
    def __init__(self):
        LightningModule.__init__(self)
        self.trunk = nn.Linear(4, 1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def test_of_several_parts_each_has_a_monitor_that_names_it():
    monitors = [UncertaintyMonitor(f"{name}/", module=name, table=False) for name in ("one", "other")]
    fitted = fit(Two(), *monitors)
    one, other = (monitor.history.rows for monitor in monitors)
    assert [row["one/sigma/depth"] for row in one] == [row["other/sigma/depth"] for row in other]
    assert {"one/sigma/depth", "other/sigma/height"} <= fitted.callback_metrics.keys()


class Evaluated(Two):
    """Evaluates both, of which each has the keys of the other."""

    def validation_step(self, batch, batch_idx):
        for part in (self.one, self.other):
            part.step(batch, "val")


def test_of_several_parts_each_logs_its_evaluation_below_its_path(expected):
    monitors = [UncertaintyMonitor(f"{name}/", module=name, table=False) for name in ("one", "other")]
    fitted = fit(Evaluated(), *monitors)
    own = {key for key in expected[1] if key.startswith("val/")}
    assert {key for key in fitted.callback_metrics if "val/" in key} == {
        f"{name}/{key}" for name in ("one", "other") for key in own
    }
    for name, monitor in zip(("one", "other"), monitors, strict=True):
        last = monitor.evaluations.rows[-1]
        assert {key for key in last if key != "step"} == own
        assert all(last[key] == fitted.callback_metrics[f"{name}/{key}"] for key in own)


class Teacher(Lightning):
    """Has another of us deep within it, whose keys are its path's, and its own are as ever."""

    def __init__(self, weighting=None, **options):
        super().__init__(weighting, **options)
        self.held = nn.ModuleDict({"teacher": make(Plain)})

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.held["teacher"].step(batch, "val")


def test_one_of_us_within_another_logs_below_its_path_and_the_outer_as_ever(expected):
    net = make(Teacher)
    net.held.requires_grad_(False)
    net.held["teacher"]._task_fit.trainer = None
    fitted = trainer(max_epochs=1, num_sanity_val_steps=0)
    net.held["teacher"]._task_fit.trainer = weakref.ref(fitted)
    net.configure_optimizers = lambda: torch.optim.Adam(
        [parameter for parameter in net.parameters() if parameter.requires_grad], 1e-2
    )
    fitted.fit(net, batches(), batches())
    own = {key for key in expected[1] if key.startswith("val/")}
    found = {key for key in fitted.callback_metrics if "val/" in key}
    assert found == own | {f"held/teacher/{key}" for key in own}


@pytest.mark.parametrize(
    ("module", "options", "found"),
    [
        (Two, {}, r"found several in Two: one, other; name one, as in UncertaintyMonitor\(module='one'\)"),
        (Two, {"module": "oen"}, "the path of a MultiTaskMixin in Two: found 'oen', where those are: one, other"),
        (Two, {"module": "one.trunk"}, "found 'one.trunk', where those are: one, other"),
        (Untasked, {}, "UncertaintyMonitor needs a MultiTaskMixin: found Untasked"),
        (lambda: make(Lightning), {"module": "net"}, "found 'net', where those are: the module itself"),
    ],
)
def test_what_is_not_there_or_there_twice_is_told(module, options, found):
    with pytest.raises(TypeError, match=found):
        fit(module(), UncertaintyMonitor(**options))


class Copying(nn.Module):
    """As PEFT's wrapper of a module that it trains a copy of."""

    def __init__(self, module):
        super().__init__()
        self.original_module, self.modules_to_save = module, nn.ModuleDict({"default": copy.deepcopy(module)})

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("modules_to_save")["default"], name)


def test_a_weighting_of_which_a_copy_would_be_trained_is_refused():
    net = make(Plain)
    net.task_weighting = Copying(net.task_weighting)
    with pytest.raises(RuntimeError, match="a library trains a copy; have it wrap the network and not the module"):
        net.step(next(iter(batches())), "train")


def test_what_freezes_all_that_it_wraps_is_named():
    module = Around(make(Lightning).requires_grad_(False))
    module.found[0].trunk.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"are frozen.*as get_peft_model does, should wrap the network and not"):
        fit(module)
