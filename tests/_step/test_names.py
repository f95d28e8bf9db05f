"""Names of a user's module that would take the place of ours."""

from functools import cached_property, partialmethod

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn

from lightning_uncertainty import MultiTaskMixin, MultiTaskModule, Task
from lightning_uncertainty.examples.penguins import PenguinNet

BASES = {
    "before": (MultiTaskMixin, LightningModule),
    "after": (LightningModule, MultiTaskMixin),
    "module": (MultiTaskModule,),
    "example": (PenguinNet,),
}
HIDING = {
    "_tell": lambda self: None,
    "_weighted": property(lambda self: None),
    "sigma": 0.5,
    "task_outputs": property(lambda self: {}),
    "weigh": cached_property(lambda self: None),
}


@pytest.mark.parametrize("bases", BASES.values(), ids=BASES)
@pytest.mark.parametrize("name", HIDING)
def test_a_class_cannot_hide_a_method(bases, name):
    with pytest.raises(TypeError, match=f"found Net.{name}, which would take the place of one; rename it"):
        type("Net", bases, {name: HIDING[name]})


@pytest.mark.parametrize("bases", BASES.values(), ids=BASES)
def test_all_that_is_hidden_is_named_with_its_class(bases):
    class Habits:
        def _tell(self):
            """What the user's own classes do."""

    with pytest.raises(TypeError, match=r"found Net\._evaluated, Habits\._tell, which"):
        type("Net", (Habits, *bases), {"_evaluated": None})


def test_what_is_there_to_be_overridden_is():
    class Net(MultiTaskModule):
        def _step(self):
            return "mine"

        def shared_parameters(self):
            return super().shared_parameters()

        def on_task_outputs(self, stage, outputs, batch):
            """See them."""

        @classmethod
        def sigma(cls):
            return {}

        test_step = partialmethod(MultiTaskModule.validation_step)

    assert Net._step(None) == "mine"


class Keeps(MultiTaskMixin, LightningModule):
    """Keeps something under a name, before or after tasks are registered."""

    def __init__(self, name, value, *, late=False):
        super().__init__()
        if not late:
            setattr(self, name, value)
        self.register_tasks({"depth": "gaussian"})
        if late:
            setattr(self, name, value)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("name", "value"), [("sigma", 0.5), ("_evaluated", 3), ("weigh", nn.Linear(1, 1)), ("_begins", lambda: None)]
)
def test_a_module_cannot_keep_something_under_the_name_of_a_method(late, name, value):
    with pytest.raises(TypeError, match=f"found Keeps.{name}, which would take the place of one; rename it"):
        Keeps(name, value, late=late).check_setup()


def test_a_method_of_one_module_may_be_another_function():
    net = Keeps("other", 1)
    net.weigh = lambda losses, stage=None: losses["depth"]
    net.check_setup()
    assert net.weigh({"depth": torch.ones(())}) == 1


def test_names_that_users_take_for_their_own_are_theirs():
    class Net(MultiTaskModule):
        def __init__(self):
            self._tasks, self._inputs, self._samples = ["depth"], "other", 5
            super().__init__(nn.Linear(4, 4), {"depth": Task("gaussian", head=nn.Linear(4, 1))}, inputs="x")
            self._features = nn.Identity()
            self._optimizer = self._window = self._skips = "mine"

    net = Net()
    net.check_setup()
    assert net.training_step({"x": torch.ones(2, 4), "depth": torch.ones(2, 1)}, 0).requires_grad
    assert isinstance(net.configure_optimizers(), torch.optim.AdamW)
