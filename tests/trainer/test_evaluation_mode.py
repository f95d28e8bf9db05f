"""A module in evaluation mode that is fitted is in training: the Trainer leaves modes as it finds them."""

import copy

import pytest
import torch
from lightning_fabric import Fabric
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import Callback
from torch import nn
from torchmetrics import Accuracy

from lightning_uncertainty import MultiTaskMixin, MultiTaskModule, Task, UncertaintyMonitor, UncertaintyWarmUp
from lightning_uncertainty._step import kpis
from lightning_uncertainty.likelihoods import HeteroscedasticGaussian
from lightning_uncertainty.tasks import HeteroscedasticHead
from lightning_uncertainty.weightings import DynamicTaskPrioritization
from tests._nets import Owning, Plain, in_a_row, tensors, trainer, tuples
from tests.trainer._weightings import BALANCING, WEIGHTINGS

STEPS = 12
pytestmark = pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode:UserWarning")  # Lightning sees it too


class Staged(Owning):
    """It says what its steps are."""

    def train_dataloader(self):
        return in_a_row(STEPS)


class Unstaged(Plain):
    """It leaves that to the Trainer, in training as in validation."""

    def train_dataloader(self):
        torch.manual_seed(1)
        return tuples(8 * STEPS)

    def val_dataloader(self):
        return self.train_dataloader()

    def validation_step(self, batch, batch_idx):
        self.weigh(self.losses(batch))


def fit(net, *callbacks, compiled=False, **options):
    """Train; return the state and the monitor's rows."""
    monitor = UncertaintyMonitor(table=False)
    fitted = trainer(**{"max_epochs": 1, "callbacks": [monitor, *callbacks], **options})
    fitted.fit(torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net)
    return tensors(net), monitor.history.rows


def modes(make):
    """The same module twice, in training and in evaluation mode."""
    for training in (True, False):
        torch.manual_seed(0)
        yield make().train(training)


def assert_same(found, expected):
    assert len(found[1]) == len(expected[1]) > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("kind", "weighting"),
    [*((Staged, name) for name in WEIGHTINGS), *((Unstaged, name) for name in WEIGHTINGS if name not in BALANCING)],
)
def test_a_fit_is_the_same_in_either_mode(kind, weighting):
    """State, σ, and what the monitor logs; the sanity check and the validation teach nothing."""
    expected, found = (fit(net) for net in modes(lambda: kind(WEIGHTINGS[weighting]())))
    assert_same(found, expected)


@pytest.mark.parametrize("kind", [Staged, Unstaged])
def test_so_it_is_for_a_compiled_step(kind):
    torch._dynamo.reset()
    expected, found = (fit(net, compiled=True, log_every_n_steps=4) for net in modes(kind))
    assert_same(found, expected)


def test_a_key_performance_indicator_is_heard():
    given = {"kind": Accuracy("multiclass", num_classes=3), "depth": 2.0}
    expected, found = (fit(net) for net in modes(lambda: Staged(DynamicTaskPrioritization(given))))
    assert_same(found, expected)
    assert found[0]["task_weighting.started"].all()


class Overriding(Staged):
    """Its heads take the features themselves, so that nothing of ours runs before the losses."""

    def task_outputs(self, features):
        return {name: head(features) for name, head in self.task_heads.items()}


@pytest.mark.filterwarnings("ignore:You are trying to .self.log..:UserWarning")
def test_outputs_of_ones_own_are_heard_in_every_step_of_training_and_in_no_other(monkeypatch):
    heard, measured = [], kpis._measured
    monkeypatch.setattr(kpis, "_measured", lambda *given: heard.append(1) or measured(*given))
    given = {"kind": Accuracy("multiclass", num_classes=3), "depth": 2.0}
    batch = in_a_row(1).dataset[0]
    for net in modes(lambda: Overriding(DynamicTaskPrioritization(given))):
        heard.clear()
        for stage, times in (("train", 1), ("val", 1), ("train", 2)):
            net.task_step(net.trunk(batch["x"]), batch, stage)
            assert len(heard) == times


class Burning(MultiTaskMixin, LightningModule):
    """A head with a burn-in that a task owns, and one that the module calls itself."""

    def __init__(self):
        super().__init__()
        owned, self.called = (HeteroscedasticHead(nn.Linear(4, 1), nn.Linear(4, 1), burn_in=5) for _ in range(2))
        own = Task(HeteroscedasticGaussian(), head=owned, target="depth")
        self.register_tasks({"owned": own, "called": Task(HeteroscedasticGaussian(), target="depth")})

    def train_dataloader(self):
        return in_a_row(STEPS)

    def training_step(self, batch, batch_idx):
        called = {"called": self.called(batch["x"])}
        outputs = {"owned": self.task_outputs(batch["x"])["owned"], **called}
        return self.weigh(self.task_losses(outputs, batch), "train")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameter_groups(lr=1e-2))


def test_a_burn_in_is_counted():
    expected, found = (fit(net) for net in modes(Burning))
    assert_same(found, expected)
    assert found[0]["task_heads.owned.steps"] == found[0]["called.steps"] == STEPS


def test_a_warm_up_blends():
    expected, found = (fit(net, UncertaintyWarmUp(steps=6, blend_from={"depth": 0.1})) for net in modes(Staged))
    assert_same(found, expected)


def test_normalisation_that_is_held_still_stays_so():
    class Normalised(Staged):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))

    net = Normalised().eval()
    fit(net)
    assert net.trunk[1].running_mean.eq(0).all()
    assert all(sigma > 0 for sigma in net.sigma().values())


class Looking(Callback):
    """It looks at gradients of predictions, in evaluation mode, in the middle of a fit."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.eval()
        x = batch["x"].clone().requires_grad_()
        torch.autograd.grad(sum(output.sum() for output in pl_module.task_outputs(x_of(pl_module, x)).values()), x)
        pl_module.train()


def x_of(net, x):
    return net.trunk(x).tanh() if hasattr(net, "trunk") else x


@pytest.mark.parametrize("make", [lambda: Burning(), *(lambda n=name: Staged(WEIGHTINGS[n]()) for name in BALANCING)])
def test_a_callback_that_looks_in_evaluation_mode_changes_nothing(make):
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(make())
    expected, found = (fit(net, *more) for net, more in zip(nets, ((), (Looking(),)), strict=True))
    assert_same(found, expected)


class Probe(Callback):
    """Calls the module by hand in the middle of a validation."""

    def on_validation_batch_end(self, trainer, pl_module, *_):
        with torch.enable_grad():
            pl_module.train()
            pl_module.weigh({"depth": torch.tensor(1e6), "kind": torch.tensor(1e6)})
            pl_module.eval()


def test_what_a_validation_weighs_teaches_nothing_whatever_the_mode():
    expected, found = (fit(net, *more) for net, more in zip(modes(Unstaged), ((), (Probe(),)), strict=True))
    assert_same(found, expected)


def test_without_a_trainer_the_mode_decides_but_for_a_stage():
    losses = {"depth": torch.tensor(4.0), "kind": torch.tensor(0.5)}
    net = Plain().eval()
    net.weigh(losses)
    assert not net.task_weighting.started.any()
    net.weigh(losses, stage="train")
    assert net.task_weighting.started.all()
    assert net.sigma()["depth"] == pytest.approx(2.0)
    net.weigh({name: 100 * loss for name, loss in losses.items()})  # evaluation again
    assert net.sigma()["depth"] == pytest.approx(2.0)


def test_after_a_fit_the_mode_decides():
    net = Unstaged()
    fit(net)
    before = tensors(net)
    net.eval().weigh({"depth": torch.tensor(1e6), "kind": torch.tensor(1e6)})
    torch.testing.assert_close(tensors(net), before, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:You are trying to .self.log..:UserWarning")
def test_heads_that_are_called_between_an_evaluation_and_the_next_step_are_counted():
    """In a loop of one's own, which changes no mode."""
    net, batch = Burning(), in_a_row(1).dataset[0]
    for stage in ("train", "val", "train"):
        outputs = {"called": net.called(batch["x"]), "owned": net.task_heads["owned"](batch["x"])}
        net.weigh(net.task_losses(outputs, batch), stage)
    assert net.called.steps == net.task_heads["owned"].steps == 3


def test_a_module_with_tasks_within_another_is_not_told_by_it():
    class Student(Staged):
        def __init__(self):
            super().__init__()
            self.teacher = Burning().eval()

        def training_step(self, batch, batch_idx):
            self.teacher.called(batch["x"])
            return super().training_step(batch, batch_idx)

    net = Student()
    fit(net)
    assert net.teacher.called.steps == 0
    assert not any(part.training for part in net.teacher.modules())


def test_names_of_ones_own_are_left_alone():
    net = Unstaged()
    net._stage, net._told, net._checked, net._fit = "pretraining", 1, True, "mine"
    fit(net)
    assert (net._stage, net._told, net._checked, net._fit) == ("pretraining", 1, True, "mine")
    assert all(sigma > 0 for sigma in net.sigma().values())


# -- without a Trainer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_a_step_without_a_stage_compiles_where_there_is_no_trainer(training):
    torch._dynamo.reset()
    nets, batch = list(modes(Unstaged)), next(iter(tuples()))
    for net in nets:
        net.train(training).check_setup()
    totals = [torch.compile(net.training_step, backend="aot_eager", fullgraph=True)(batch, 0) for net in nets[:1]]
    totals.append(nets[1].training_step(batch, 0))
    torch.testing.assert_close(*totals)
    assert bool(nets[0].task_weighting.started.all()) is training


def test_a_forward_compiles_and_exports_where_there_is_no_trainer():
    torch._dynamo.reset()
    net, x = (
        MultiTaskModule(nn.Linear(4, 8), {"depth": Task("laplace", head=nn.Linear(8, 1))}, inputs="x"),
        torch.ones(2, 4),
    )
    expected = net.eval()(x)
    torch.testing.assert_close(torch.compile(net, backend="aot_eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(net, (x,), strict=True).module()(x), expected)


@pytest.mark.parametrize("weighting", ["UncertaintyWeighting", "DynamicWeightAverage", "GradNorm"])
def test_a_loop_of_fabric(weighting):
    """It logs no metrics: those of the tasks are updated, and read by hand."""
    torch.manual_seed(0)
    fabric, net = Fabric(accelerator="cpu", devices=1), Staged(WEIGHTINGS[weighting]())
    reference = copy.deepcopy(net)
    model, optimizer = fabric.setup(net, net.configure_optimizers())
    model.mark_forward_method("training_step")
    model.mark_forward_method("validation_step")
    for index, batch in enumerate(in_a_row(STEPS).dataset):
        optimizer.zero_grad()
        fabric.backward(model.training_step(batch, index))
        optimizer.step()
    torch.testing.assert_close(tensors(net), fit(reference)[0])
    model.eval()
    model.validation_step(batch, 0)
    assert net.task_metrics["val/depth/loss"].compute() > 0
