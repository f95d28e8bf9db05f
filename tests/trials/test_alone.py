import pytest
import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import nn

from lightning_uncertainty import FixedWeighting, MultiTaskMixin, MultiTaskModule, Task, UncertaintyWeighting
from lightning_uncertainty.architectures import CrossStitch, HardSharing
from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.likelihoods import Constant
from lightning_uncertainty.trials._alone import train_alone
from lightning_uncertainty.weightings import DynamicTaskPrioritization, DynamicWeightAverage
from tests._nets import Owning, Plain, dicts, tuples
from tests.trials.test_comparing import WEIGHTINGS, run

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def fitted(make, data, task=None, epochs=2):
    seed_everything(0, verbose=False)
    net = make()
    if task is not None:
        train_alone(net, task)
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", **QUIET)
    trainer.fit(net, *data())
    return net, {key: value.item() for key, value in trainer.callback_metrics.items()}


def test_heads_of_others_are_not_computed_and_nothing_else_changes():
    calls = []

    def make():
        net = Owning(FixedWeighting({"kind": 0.0}))
        net.task_heads["kind"].register_forward_hook(lambda *_: calls.append(net.trainer.training))
        return net

    before, by_zero = fitted(make, lambda: (dicts(16), dicts(16)))
    assert calls.count(True) == 4
    calls.clear()
    after, alone = fitted(make, lambda: (dicts(16), dicts(16)), "depth")
    assert calls
    assert True not in calls
    assert alone == by_zero
    for name, value in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], value, msg=name)


def sharing(kind=HardSharing):
    return kind(nn.Linear(4, 8), {"depth": nn.Linear(8, 1), "kind": nn.Linear(8, 3)})


def ready(weighting):
    return MultiTaskModule(sharing(), {"depth": "gaussian", "kind": "categorical"}, weighting, inputs="x")


class Logging(MultiTaskModule):
    """Looks at all predictions in training."""

    def training_step(self, batch, batch_idx):
        outputs = self(self.inputs_of(batch))
        self.log("train/kind", outputs["kind"].mean())
        return self.task_step(outputs, batch, "train")


class Joined(HardSharing):
    """Has one task look at another's prediction."""

    def forward(self, inputs, size=None, split=None):
        found = super().forward(inputs, size, split)
        return {**found, "depth": found["depth"] + 0 * found["kind"][:, :1]}


class Own(MultiTaskMixin, LightningModule):
    """Calls an architecture by itself."""

    def __init__(self, weighting):
        super().__init__()
        self.net = sharing()
        self.register_tasks({"depth": "gaussian", "kind": "categorical"}, weighting=weighting)

    def outputs(self, batch):
        return self.net.decode(self.split_features(self.net.features(batch["x"])))

    def training_step(self, batch, batch_idx):
        outputs = self.outputs(batch)
        return self.weigh({name: loss.mean() for name, loss in self.losses(outputs, batch).items()})

    def losses(self, outputs, batch):
        found = self.task_losses(outputs, batch)
        return {name: total / count for name, (total, count) in found.items()}

    def validation_step(self, batch, batch_idx):
        self.task_step(self.outputs(batch), batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameter_groups(lr=1e-2))


@pytest.mark.parametrize(
    ("make", "spared"),
    [
        (ready, True),
        (
            lambda weighting: Logging(sharing(), {"depth": "gaussian", "kind": "categorical"}, weighting, inputs="x"),
            False,
        ),
        (
            lambda weighting: MultiTaskModule(
                sharing(Joined), {"depth": "gaussian", "kind": "categorical"}, weighting, inputs="x"
            ),
            False,
        ),
        (Own, False),
        (lambda weighting: Own(GradientBalancing("mgda", weighting)), False),
    ],
    ids=["ready", "ready, of one's own step", "tasks that meet", "own", "own, balanced"],
)
def test_a_branch_trains_the_same_whether_others_are_spared_or_not(make, spared):
    calls = []

    def counting():
        net = make(FixedWeighting({"kind": 0.0}))
        heads = next(part.heads for part in net.modules() if isinstance(part, HardSharing))
        heads["kind"].register_forward_hook(lambda *_: calls.append(net.trainer.training))
        return net

    before, by_zero = fitted(counting, lambda: (dicts(16), dicts(16)))
    assert calls.count(True) == 4
    calls.clear()
    after, alone = fitted(counting, lambda: (dicts(16), dicts(16)), "depth")
    assert calls.count(True) == (0 if spared else 4)
    assert False in calls
    assert alone["val/depth/loss"] == by_zero["val/depth/loss"]
    for name, value in before.state_dict().items():
        if "heads.kind" not in name:  # which decays where it has a gradient of zeros
            torch.testing.assert_close(after.state_dict()[name], value, msg=name)


def test_a_module_that_makes_its_outputs_itself_trains_one_of_them():
    class Overriding(Owning):
        def task_outputs(self, features):
            return {name: head(features) for name, head in self.task_heads.items()}

        def task_losses(self, outputs, batch):
            assert set(outputs) == {"depth", "kind"}
            return super().task_losses(outputs, batch)

    _, found = fitted(Overriding, lambda: (dicts(16), dicts(16)), "depth")
    _, expected = fitted(Owning, lambda: (dicts(16), dicts(16)), "depth")
    assert found == expected


def test_architectures_whose_tasks_meet_again_are_computed_whole():
    def make():
        heads = {"depth": nn.Linear(8, 1), "kind": nn.Linear(8, 3)}
        net = CrossStitch({name: [nn.Linear(4, 8), nn.Linear(8, 8)] for name in heads}, heads, channels=[8, 8])
        return MultiTaskModule(net, {"depth": "gaussian", "kind": "categorical"}, FixedWeighting(), inputs="x")

    net, found = fitted(make, lambda: (dicts(16), dicts(16)), "depth")
    seed_everything(0, verbose=False)
    start = make()
    moved = {name for name, value in start.state_dict().items() if not torch.equal(value, net.state_dict()[name])}
    assert any("fusions" in name for name in moved)
    assert set(found) >= {"val/depth/loss", "val/kind/loss"}


@pytest.mark.parametrize("kind", [UncertaintyWeighting, DynamicWeightAverage, lambda: DynamicTaskPrioritization(1.0)])
def test_under_its_weighting_a_task_trains_as_if_it_were_registered_alone(kind):
    def module(names):
        seed_everything(3, verbose=False)
        trunk = nn.Linear(4, 8)
        heads = {"depth": nn.Linear(8, 1), "kind": nn.Linear(8, 3)}
        kinds = {"depth": "gaussian", "kind": "categorical"}
        tasks = {name: Task(kinds[name], head=heads[name]) for name in names}
        return MultiTaskModule(trunk, tasks, kind(), inputs="x")

    _, one = fitted(lambda: module(["depth"]), lambda: (dicts(16), dicts(16)), epochs=3)
    _, alone = fitted(lambda: module(["depth", "kind"]), lambda: (dicts(16), dicts(16)), "depth", epochs=3)
    assert alone["val/depth/loss"] == pytest.approx(one["val/depth/loss"], rel=1e-6)


def test_a_module_that_computes_its_losses_trains_one_of_them():
    def kinds(task):
        net, _ = fitted(lambda: Plain(UncertaintyWeighting()), lambda: (tuples(16), tuples(16)), task)
        return net

    torch.manual_seed(0)
    seed_everything(0, verbose=False)
    start = Plain()
    net = kinds("depth")
    assert torch.equal(net.kind.weight, start.kind.weight)
    assert not torch.equal(net.depth.weight, start.depth.weight)


def test_constant_terms_stay():
    class WithTerm(Plain):
        def __init__(self):
            super(Plain, self).__init__()
            self.depth, self.kind = nn.Linear(4, 1), nn.Linear(4, 3)
            self.register_tasks({"depth": "gaussian", "kind": "categorical", "prior": Constant()})

        def losses(self, batch):
            return {**super().losses(batch), "prior": self.depth.weight.square().sum()}

    net, _ = fitted(WithTerm, lambda: (tuples(16), tuples(16)), "kind")
    other, _ = fitted(WithTerm, lambda: (tuples(16), tuples(16)), "depth")
    assert net.depth.weight.norm() < other.depth.weight.norm()


def test_compare_trains_single_tasks_under_the_weightings_that_are_named():
    found = run(alone=["uncertainty"])
    singles = {(trial.name, trial.task) for trial in found.trials if trial.task}
    assert singles == {
        (name, task) for name in ("single task", "single task, uncertainty") for task in ("depth", "kind")
    }
    by_name = {result.name: result for result in found.results}
    assert by_name["uncertainty"].gain_alone is not None
    assert by_name["equal"].gain_alone is None
    with pytest.raises(ValueError, match=r"alone should name weightings \(equal, uncertainty\): found x"):
        run(alone=["x"])
    with pytest.raises(ValueError, match="should not be called 'single task, equal'"):
        run(weightings={**WEIGHTINGS, "single task, equal": FixedWeighting}, alone=["equal"])
