"""Who monitors the weighted total is told so, once, whatever way it was logged; nobody else is."""

import warnings

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torchmetrics import MeanMetric

from lightning_uncertainty import (
    AnalyticUncertaintyWeighting,
    FixedWeighting,
    GradientBalancing,
    UncertaintyMonitor,
    UncertaintyWeighting,
)
from lightning_uncertainty.weightings import GeometricLossWeighting
from tests._nets import Plain, trainer, tuples


class Logging(Plain):
    """Logs the total of every step, `way` saying how."""

    def __init__(self, weighting=None, monitor=None, **way):
        super().__init__(weighting)
        self.monitor, self.way = monitor, way

    def training_step(self, batch, batch_idx):
        total = super().training_step(batch, batch_idx)
        self.log("train_loss", total, **self.way)
        return total

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        total = self.weigh(self.losses(batch), stage="val")
        self.log("val_loss", total, **self.way)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        if self.monitor is None:
            return optimizer
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": self.monitor}}


class AtTheEnd(Plain):
    """Gathers totals itself, and logs their mean."""

    def __init__(self):
        super().__init__()
        self.of_validation, self.of_training = [], MeanMetric()

    def training_step(self, batch, batch_idx):
        total = super().training_step(batch, batch_idx)
        self.of_training.update(total)
        return total

    def on_train_epoch_end(self):
        self.log("train_loss", self.of_training)

    def validation_step(self, batch, batch_idx):
        self.of_validation.append(self.weigh(self.losses(batch)))

    def on_validation_epoch_end(self):
        self.log("val_loss", torch.stack(self.of_validation).mean())
        self.of_validation.clear()


class Pruning(Callback):
    """As that of a search, which is no callback of Lightning's own."""

    def __init__(self, key):
        self.monitor = key


def told(net, *callbacks, loaders=1, **options):
    """Return what is said of the total in a fit of three epochs."""
    monitor = UncertaintyMonitor(table=False)
    validation = [tuples(30) for _ in range(loaders)]  # the last batch is smaller
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(max_epochs=3, callbacks=[*callbacks, monitor], **options).fit(
            net, tuples(30), validation if loaders > 1 else validation[0]
        )
    return [str(warning.message) for warning in caught if "the weighted total" in str(warning.message)]


WAYS = {
    "as it is": {},
    "by epoch": {"on_step": False, "on_epoch": True},
    "both": {"on_step": True, "on_epoch": True},
    "sum": {"on_step": False, "on_epoch": True, "reduce_fx": "sum"},
    "largest": {"on_step": False, "on_epoch": True, "reduce_fx": "max"},
    "without batch size": {"batch_size": 1},
}
CASES = [(name, key) for name in WAYS for key in ("train_loss", "val_loss")]


@pytest.mark.parametrize("every", [1, 50])
@pytest.mark.parametrize(("way", "key"), CASES)
def test_early_stopping_on_the_total_is_told_once(way, key, every):
    (message,) = told(Logging(**WAYS[way]), EarlyStopping(key, check_on_train_epoch_end=True), log_every_n_steps=every)
    assert message.startswith(f"EarlyStopping should not monitor {key!r}: its values are those of the weighted total")
    assert "monitor 'val/balanced_loss', which weigh(losses, stage='val') logs" in message


@pytest.mark.parametrize("key", ["train_loss_epoch", "val_loss_epoch"])
def test_keys_of_what_is_logged_both_ways_are_known(key):
    assert len(told(Logging(**WAYS["both"]), EarlyStopping(key))) == 1


def test_a_key_of_one_of_several_dataloaders_is_known():
    assert len(told(Logging(), EarlyStopping("val_loss/dataloader_idx_1"), loaders=2)) == 1


def test_all_who_monitor_it_are_named_in_one_warning(tmp_path):
    net = Logging(monitor="val_loss")
    callbacks = [Pruning("val_loss"), EarlyStopping("train_loss"), ModelCheckpoint(tmp_path, monitor="val_loss")]
    (message,) = told(net, *callbacks, enable_checkpointing=True)
    assert message.startswith(
        ("EarlyStopping should not monitor 'train_loss'", "Pruning and ModelCheckpoint and ReduceLROnPlateau should")
    )
    (message,) = told(Logging(monitor="val_loss"))
    assert message.startswith("ReduceLROnPlateau should not monitor 'val_loss'")


@pytest.mark.parametrize("key", ["train_loss", "val_loss"])
def test_a_mean_that_is_made_at_the_end_of_an_epoch_is_known(key):
    assert len(told(AtTheEnd(), Pruning(key))) == 1


@pytest.mark.parametrize(
    "weighting", [AnalyticUncertaintyWeighting, lambda: GradientBalancing("mgda", UncertaintyWeighting())]
)
def test_it_is_told_under_every_weighting_that_moves(weighting):
    class Heads(Logging):
        def losses(self, batch):
            split = self.split_features(batch[0].requires_grad_())
            x = split["depth"], split["kind"]
            depth = torch.nn.functional.mse_loss(self.depth(x[0])[:, 0], batch[1])
            return {"depth": depth, "kind": torch.nn.functional.cross_entropy(self.kind(x[1]), batch[2])}

    assert len(told(Heads(weighting()), EarlyStopping("train_loss", check_on_train_epoch_end=True))) == 1


@pytest.mark.parametrize(
    "key", ["val/balanced_loss", "val/depth/loss", "loss/depth", "sigma/depth", "mine", "val_mine"]
)
def test_other_keys_are_not(key):
    class Other(Logging):
        def training_step(self, batch, batch_idx):
            total = super().training_step(batch, batch_idx)
            self.log("mine", total + 1e-3)
            return total

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("val_mine", sum(self.losses(batch).values()))

    assert told(Other(monitor=key), EarlyStopping(key, check_on_train_epoch_end=True)) == []


@pytest.mark.parametrize("weighting", [FixedWeighting, GeometricLossWeighting])
def test_a_total_of_the_losses_alone_may_be_monitored(weighting):
    assert told(Logging(weighting()), EarlyStopping("val_loss")) == []


def test_a_value_that_is_equal_by_chance_is_not_told():
    """Before σ has moved from 1, a classifier's total is its loss."""

    class Single(Plain):
        def __init__(self):
            torch.nn.Module.__init__(self)
            super(Plain, self).__init__()
            self.kind = torch.nn.Linear(4, 3)
            self.register_tasks({"kind": "categorical"}, weighting=UncertaintyWeighting(start=0.0))

        def losses(self, batch):
            return {"kind": torch.nn.functional.cross_entropy(self.kind(batch[0]), batch[2])}

        def training_step(self, batch, batch_idx):
            losses = self.losses(batch)
            self.log("train_loss", losses["kind"])
            return self.weigh(losses)

    assert told(Single(), EarlyStopping("train_loss", check_on_train_epoch_end=True)) == []


def test_nothing_is_read_where_nobody_monitors(monkeypatch):
    reads = []
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: reads.append(tensor) or tensor.double().tolist())
    told(Logging(), log_every_n_steps=50)
    assert reads == []
