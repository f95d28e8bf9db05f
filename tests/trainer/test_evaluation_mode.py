"""A module in evaluation mode that is fitted is in training: the Trainer leaves modes as it finds them."""

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import Callback
from torch import nn
from torchmetrics import Accuracy

from lightning_uncertainty import MultiTaskMixin, Task, UncertaintyMonitor, UncertaintyWarmUp
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
    kpis = {"kind": Accuracy("multiclass", num_classes=3), "depth": 2.0}
    expected, found = (fit(net) for net in modes(lambda: Staged(DynamicTaskPrioritization(kpis))))
    assert_same(found, expected)
    assert found[0]["task_weighting.started"].all()


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
