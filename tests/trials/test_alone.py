import pytest
import torch
from pytorch_lightning import Trainer, seed_everything
from torch import nn

from lightning_uncertainty import FixedWeighting, MultiTaskModule, Task, UncertaintyWeighting
from lightning_uncertainty.likelihoods import Constant
from lightning_uncertainty.trials._alone import train_alone
from lightning_uncertainty.weightings import DynamicTaskPrioritization, DynamicWeightAverage
from tests._nets import Owning, Plain, dicts, tuples
from tests.trials.test_comparing import WEIGHTINGS, run

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def fitted(make, data, task=None):
    seed_everything(0, verbose=False)
    net = make()
    if task is not None:
        train_alone(net, task)
    trainer = Trainer(max_epochs=2, accelerator="cpu", **QUIET)
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


@pytest.mark.parametrize("kind", [UncertaintyWeighting, DynamicWeightAverage, lambda: DynamicTaskPrioritization(1.0)])
def test_under_its_weighting_a_task_trains_as_if_it_were_registered_alone(kind):
    def module(names):
        seed_everything(3, verbose=False)
        trunk = nn.Linear(4, 8)
        heads = {"depth": nn.Linear(8, 1), "kind": nn.Linear(8, 3)}
        kinds = {"depth": "gaussian", "kind": "categorical"}
        tasks = {name: Task(kinds[name], head=heads[name]) for name in names}
        return MultiTaskModule(trunk, tasks, kind(), inputs="x")

    _, one = fitted(lambda: module(["depth"]), lambda: (dicts(16), dicts(16)))
    _, alone = fitted(lambda: module(["depth", "kind"]), lambda: (dicts(16), dicts(16)), "depth")
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
