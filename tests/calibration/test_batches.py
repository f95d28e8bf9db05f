"""Held-out batches are what a step of validation is given, whatever hooks and precision do to them."""

import pytest
import torch
from pytorch_lightning import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_uncertainty import MultiTaskModule, Task
from lightning_uncertainty.calibration import assess, recalibrate
from tests._nets import Rows, columns, dicts, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.* keeps its correction",
    "ignore:the aleatoric uncertainty of depth is NaN",
    "ignore:You have overridden",
)


class Changed(MultiTaskModule):
    """Notes what it is asked to predict, and in which types of numbers."""

    def __init__(self, backbone=None):
        tasks = {"depth": Task("gaussian", head=nn.Linear(8, 1)), "kind": Task("categorical", head=nn.Linear(8, 3))}
        super().__init__(backbone or nn.Linear(4, 8), tasks, inputs="x")
        self.seen = []

    def forward(self, inputs):
        outputs = super().forward(inputs)
        self.seen.append((inputs.clone(), outputs["depth"].dtype, torch.zeros(()).dtype))
        return outputs

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self(self.inputs_of(batch))


def change(self, batch, by):
    stage = "train" if self.trainer.training else "val" if self.trainer.validating else "?"
    return {**batch, "x": batch["x"] * {"train": 100, "val": by}[stage]}


class Before(Changed):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return change(self, batch, 3)


class After(Changed):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return change(self, batch, 5 + dataloader_idx)


class Moves(Changed):
    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return super().transfer_batch_to_device(change(self, batch, 7), device, dataloader_idx)


class Data(LightningDataModule):
    """Its loaders, and no hook."""

    def __init__(self, several=False):
        super().__init__()
        self.several = several

    def train_dataloader(self):
        torch.manual_seed(0)
        return DataLoader(Rows(columns(32)), batch_size=8)

    def val_dataloader(self):
        return [self.train_dataloader(), self.train_dataloader()] if self.several else self.train_dataloader()


class DataAfter(Data):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return change(self, batch, 11 + dataloader_idx)


class DataBefore(Data):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return change(self, batch, 13)


def seen(net):
    found, net.seen = net.seen, []
    return found


def alike(found, expected):
    assert len(found) == len(expected) > 0
    for (inputs, *types), (others, *other_types) in zip(found, expected, strict=True):
        assert torch.equal(inputs, others)
        assert inputs.dtype == others.dtype
        assert types == other_types


@pytest.mark.parametrize("kind", [Changed, Before, After, Moves])
@pytest.mark.parametrize("data", [Data, DataAfter, DataBefore])
@pytest.mark.parametrize("several", [False, True], ids=["", "several"])
def test_batches_are_those_of_validation(kind, data, several):
    net, datamodule = kind(), data(several)
    fitted = trainer(max_epochs=1, num_sanity_val_steps=0, limit_val_batches=0)
    fitted.fit(net, datamodule=datamodule)
    seen(net)
    trainer(num_sanity_val_steps=0).validate(net, datamodule=datamodule, verbose=False)
    expected = seen(net)
    net.trainer, datamodule.trainer = fitted, fitted  # as if only the fit had been
    for look in (assess, recalibrate):
        look(net, datamodule.val_dataloader())
        alike(seen(net), expected)
    net.trainer = datamodule.trainer = None  # as after loading: the DataModule is given
    for look in (assess, recalibrate):
        look(net, datamodule.val_dataloader(), datamodule=datamodule)
        alike(seen(net), expected)
    assert net._trainer is datamodule.trainer is None


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "16-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("loaded", [False, True])
def test_precision_is_that_of_validation(precision, loaded):
    net, batches = Changed(), dicts()
    run = trainer(precision=precision)
    run.validate(net, batches, verbose=False)
    expected = seen(net)
    if loaded:
        net.trainer = None
        if precision == "bf16-mixed":
            expected = [(inputs, torch.float32, torch.float32) for inputs, *_ in expected]
    recalibrated(net, batches)
    alike(seen(net), expected)
    assert torch.get_default_dtype() == torch.float32


def recalibrated(net, batches):
    net.task_weighting.log_variance.fill_(0.0)
    found = recalibrate(net, batches)
    assert {*found.tasks, *found.kept} == {"depth", "kind"}
    assert "depth" in found.tasks


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_module_that_was_cast_since_its_fit_is_given_its_own_type(precision):
    net = Changed()
    trainer(max_epochs=1, precision=precision, limit_val_batches=0).fit(net, dicts())
    for cast in (net.float, net.bfloat16, net.double):
        cast()
        recalibrated(net, dicts())


def test_in_a_callback_of_a_fit_held_out_data_are_not_augmented():
    class Ending(After):
        def on_train_end(self):
            seen(self)
            assess(self, dicts())
            self.found, self.stage = seen(self), str(self.trainer.state.stage)

    net = Ending()
    trainer(max_epochs=1, limit_val_batches=0).fit(net, dicts())
    assert net.stage.endswith("TRAINING")
    torch.manual_seed(0)
    assert all((inputs.abs() < 50).all() for inputs, *_ in net.found)


def test_a_part_of_what_a_trainer_runs_is_fed_by_the_whole():
    class Whole(After):
        def __init__(self):
            super().__init__()
            self.part = Changed()

    net = Whole()
    trainer(max_epochs=1, limit_val_batches=0).fit(net, dicts())
    loader = dicts()
    assess(net.part, loader)
    torch.testing.assert_close(
        torch.cat([inputs for inputs, *_ in net.part.seen]), torch.cat([batch["x"] * 5 for batch in loader])
    )


def test_an_error_leaves_trainer_stage_and_types_as_they_were():
    net = After()
    run = trainer(max_epochs=1, precision="64-true", limit_val_batches=0)
    run.fit(net, dicts())
    stage = run.state.stage

    def forward(inputs):
        raise KeyError

    with pytest.raises(KeyError):
        assess(net, dicts(), forward=forward)
    assert run.state.stage is stage
    assert net.trainer is run
    assert torch.get_default_dtype() is torch.float32
    net.trainer = None
    with pytest.raises(KeyError):
        assess(net, dicts(), forward=forward)
    assert net._trainer is None


def test_a_trainer_made_for_hooks_says_nothing(caplog):
    net = After()
    with caplog.at_level("INFO"):
        net.task_weighting.log_variance.fill_(0.0)
        assess(net, dicts())
    assert caplog.messages == []


@pytest.mark.parametrize("call", [recalibrate, assess])
@pytest.mark.parametrize(
    ("data", "found"),
    [
        (LightningDataModule(), "LightningDataModule; give what its val_dataloader"),
        ({"x": torch.ones(2, 4)}, "dict$"),
        (torch.ones(2, 4), "Tensor$"),
        (None, "NoneType$"),
    ],
)
def test_what_is_no_dataloader_is_told(call, data, found):
    net = MultiTaskModule(nn.Linear(4, 8), {"a": Task("gaussian", head=nn.Linear(8, 1))}, inputs="x")
    with pytest.raises(TypeError, match=f"should be a dataloader, or a list of batches: found a {found}"):
        call(net, data)
