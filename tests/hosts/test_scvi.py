"""scvi-tools: SCANVI, an ELBO beside a classification, behind a `train` of its own; its labels are partly unknown."""

from __future__ import annotations

import functools
import math

import anndata
import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch import Callback, seed_everything
from scvi.model import SCANVI
from scvi.train import SemiSupervisedTrainingPlan

from lightning_uncertainty import AdoptLosses, MultiTaskMixin, UncertaintyMonitor, UncertaintyWeighting
from lightning_uncertainty.adoption import describe
from tests.hosts._fits import HOST_WARNS, RANKS, check_gradients, check_rows, same

pytestmark = HOST_WARNS
TASKS = {"cell": "categorical", "elbo": "constant"}  # the ELBO is a likelihood already, in nats per cell: no σ
NAMED = {
    "logged": {"cell": "log:train_classification_loss"},
    "weight": {"cell": "weight:loss_kwargs['classification_ratio']"},
    "call": {"cell": "call:module.classification_loss@0[0]"},
}
CELLS, BATCH, GENES, KINDS = 320, 64, 20, 3


@functools.cache
def cells():
    """Counts of genes in cells of three kinds; a fifth of the labels is wrong, another fifth unknown."""
    rng = np.random.default_rng(0)
    kind = rng.integers(KINDS, size=CELLS)
    rates = 3 * np.exp(rng.normal(size=(KINDS, GENES)))[kind] * rng.gamma(5, 0.2, size=(CELLS, 1))
    label = np.where(rng.random(CELLS) < 0.2, rng.integers(KINDS, size=CELLS), kind).astype(str)
    label[::5] = "unknown"
    found = anndata.AnnData(rng.poisson(rates).astype(np.float32), obs={"label": label})
    SCANVI.setup_anndata(found, labels_key="label", unlabeled_category="unknown")
    return found


class Seeded(Callback):
    """Has every epoch draw the same batches and samples, whether the fit begins with it or not."""

    def __init__(self, first=0):
        self.first = first

    def on_fit_start(self, trainer, pl_module):
        seed_everything(self.first, verbose=False)

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch != self.first:  # of the first, batches are drawn before this
            seed_everything(trainer.current_epoch, verbose=False)


def model():
    scvi.settings.seed = 0
    return SCANVI(cells(), n_hidden=16, n_latent=4)


def train(scanvi, *callbacks, plan=None, **options):
    scanvi.train(
        accelerator="cpu",
        plan_kwargs={"n_epochs_kl_warmup": 10, **(plan or {})},
        callbacks=list(callbacks),
        **{"train_size": 1.0, "batch_size": BATCH, "enable_progress_bar": False, "log_every_n_steps": 1, **options},
    )
    return scanvi


def fitted(*callbacks, named="logged", weighting=None, **options):
    return train(model(), AdoptLosses(TASKS, NAMED[named], rest="elbo", weighting=weighting), *callbacks, **options)


def plan_of(scanvi):
    return scanvi.trainer.lightning_module


def test_sigma_is_what_the_classification_loss_says():
    monitor = UncertaintyMonitor(table=False)
    scanvi = fitted(monitor, max_epochs=150, plan={"lr": 5e-3})
    logged = scanvi.history["train_classification_loss"].astype(float).to_numpy()[-20:].mean()
    sigma = plan_of(scanvi).sigma()["cell"]
    print(f"scvi: sigma {sigma}, cross-entropy {logged}, sqrt(2 CE) {math.sqrt(2 * logged)}")
    assert sigma == pytest.approx(math.sqrt(2 * logged), rel=0.02)
    steps = len(monitor.history.rows)
    assert steps == scanvi.trainer.global_step
    check_rows(monitor, set(TASKS), {"cell"})
    assert len(scanvi.history["sigma/cell"]) == steps


class Gradients(Callback):
    """Keeps the gradients of the first step, and the weights that were."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.found = {name: p.grad.clone() for name, p in pl_module.module.named_parameters() if p.grad is not None}
        self.weights = pl_module.take_row()["weight"] if isinstance(pl_module, MultiTaskMixin) else {}


@pytest.mark.parametrize("named", NAMED)
def test_gradients_are_those_of_weights_by_hand(named):
    ours, theirs = Gradients(), Gradients()
    options = {"limit_train_batches": 1, "max_epochs": 1}
    scanvi = fitted(Seeded(), ours, named=named, **options)
    assert ours.weights["elbo"] == 1
    train(model(), Seeded(), theirs, plan={"classification_ratio": ours.weights["cell"]}, **options)
    check_gradients(ours.found, theirs.found, each=False)
    assert type(plan_of(scanvi)).__name__ == "SemiSupervisedTrainingPlan"


@pytest.mark.parametrize("weighting", [None, UncertaintyWeighting()])
def test_a_resumed_fit_is_the_same_as_one_that_was_not_interrupted(weighting):
    whole = fitted(Seeded(), max_epochs=4, weighting=weighting)
    fitted(Seeded(), max_epochs=2, weighting=weighting).trainer.save_checkpoint("half.ckpt")
    resumed = fitted(Seeded(first=2), max_epochs=4, weighting=weighting, ckpt_path="half.ckpt")
    assert resumed.trainer.global_step == whole.trainer.global_step
    assert same(resumed.module, whole.module)
    assert plan_of(resumed).sigma() == plan_of(whole).sigma()


def test_the_host_reads_what_was_written():
    scanvi = fitted(max_epochs=2)
    scanvi.save("saved")
    loaded = SCANVI.load("saved", cells())
    assert same(loaded.module, scanvi.module)
    assert loaded.predict(soft=True).equals(scanvi.predict(soft=True))
    scanvi.trainer.save_checkpoint("host.ckpt")
    plain = SemiSupervisedTrainingPlan.load_from_checkpoint("host.ckpt", module=model().module, n_classes=KINDS)
    assert type(plain) is SemiSupervisedTrainingPlan
    assert same(plain.module, scanvi.module)
    alone = train(model(), max_epochs=3, ckpt_path="host.ckpt")
    assert alone.trainer.current_epoch == 3


def test_describe_finds_what_to_write():
    scanvi = train(model(), max_epochs=1)
    plan = SemiSupervisedTrainingPlan(scanvi.module, KINDS)
    found = {name: part for part in describe(plan, scanvi.trainer.train_dataloader).candidates for name in part.names}
    assert {named["cell"] for named in NAMED.values()} <= set(found)
    assert found[NAMED["logged"]["cell"]].weight == 50  # its default


def test_what_no_part_explains_is_refused_or_added():
    with pytest.raises(RuntimeError, match="no part explains"):
        train(model(), AdoptLosses({"cell": "categorical"}, NAMED["logged"]), max_epochs=1)
    scanvi = train(model(), AdoptLosses({"cell": "categorical"}, NAMED["logged"], rest="plain"), Seeded(), max_epochs=1)
    assert plan_of(scanvi).sigma() == plan_of(fitted(Seeded(), max_epochs=1)).sigma()


def test_losses_of_validation_and_what_the_host_watches():
    validation = {"cell": "log:validation_classification_loss"}
    scanvi = train(
        model(),
        AdoptLosses(TASKS, NAMED["logged"], rest="elbo", validation=validation),
        UncertaintyMonitor(table=False),
        plan={"reduce_lr_on_plateau": True},
        max_epochs=2,
        train_size=0.75,
        check_val_every_n_epoch=1,
        early_stopping=True,
    )
    found, logged = (scanvi.history[key].astype(float) for key in ("val/cell/loss", "validation_classification_loss"))
    assert len(found) == len(logged) == 2
    assert found.to_numpy()[-1] > 0


def test_its_own_module_is_trained_on_a_second_time():
    scanvi = fitted(max_epochs=1)
    before = {name: value.clone() for name, value in scanvi.module.state_dict().items()}
    train(scanvi, AdoptLosses(TASKS, NAMED["weight"], rest="elbo"), max_epochs=1)
    assert any(not torch.equal(before[name], value) for name, value in scanvi.module.state_dict().items())


def run(cells):
    """Be one of two processes, each with half of every batch."""
    return {cell: shared_fit(cell) for cell in cells}


def shared_fit(strategy):
    options = {"strategy": strategy, "devices": RANKS, "batch_size": BATCH // RANKS, "max_epochs": 3}
    scanvi = fitted(**options)
    return {
        "state": dict(scanvi.module.named_parameters()),
        "sigma": plan_of(scanvi).sigma(),
        "steps": scanvi.trainer.global_step,
    }


@pytest.mark.cells("tests.hosts.test_scvi", "ddp_find_unused_parameters_true")
def test_two_processes_stay_as_one(found):
    """Each draws its own samples of the latent state, so that no single process does the same."""
    one, other = (found("ddp_find_unused_parameters_true", rank) for rank in (0, 1))
    assert one["steps"] == other["steps"] > 3
    assert one["sigma"] == other["sigma"]
    assert all(0.5 < value < 2 for value in one["sigma"].values())
    for name, value in one["state"].items():
        assert torch.equal(other["state"][name], value), name
