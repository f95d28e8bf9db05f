"""biolord's training plan, which `train()` builds within: three optimizers stepped by hand, losses added in place."""

import math

import anndata
import biolord
import numpy as np
import pandas as pd
import pytest
import torch
from biolord._train import biolordTrainingPlan
from lightning import pytorch as pl
from torch.utils.data import DataLoader

from lightning_uncertainty import AdoptLosses, UncertaintyMonitor, adopt
from lightning_uncertainty.adoption import unadopt
from tests.hosts._fits import QUIET, Gradients, check_gradients, check_resumed, check_rows, weighted_sum, weighting_of

# what a user writes, within model.train(callbacks=[AdoptLosses(...), ...])
GIVEN = {
    "tasks": {"expression": "gaussian", "unknown": "constant"},
    "parts": {
        "expression": "weight:module.reconstruction_penalty",
        "unknown": "weight:module.unknown_attribute_penalty",
    },
    "rest": "plain",
}
BY_CALL = {
    **GIVEN,
    "parts": {"expression": "call:module.ae_loss_mse_fn", "unknown": "call:module.unknown_attribute_penalty_loss"},
}
CELLS, GENES = 192, 12


@pytest.fixture
def cells():
    """Expression that a cell's kind and age explain, but for a deviation of 0.5."""
    rng = np.random.default_rng(0)
    kind, age = rng.integers(0, 3, CELLS), rng.normal(size=CELLS).astype("float32")
    means = rng.normal(size=(3, GENES))[kind] * 3 + 10 + 0.5 * age[:, None] * rng.normal(size=GENES)
    table = {"kind": pd.Categorical(kind.astype(str)), "age": age}
    table["split"] = np.where(np.arange(CELLS) < 160, "train", "test")
    made = (means + rng.normal(size=means.shape) * 0.5).astype("float32")
    data = anndata.AnnData(made, obs=pd.DataFrame(table, index=np.arange(CELLS).astype(str)))
    biolord.Biolord.setup_anndata(data, ordered_attributes_keys=["age"], categorical_attributes_keys=["kind"])
    return data


def make(cells, **penalties):
    own = {"attribute_nn_width": {"age": 8}, "attribute_nn_depth": {"age": 1}}
    small = {"decoder_width": 16, "decoder_depth": 1, **own}
    plain = {"decoder_dropout_rate": 0.0, "use_batch_norm": False, "unknown_attribute_noise_param": 0.0}
    return biolord.Biolord(cells, n_latent=4, split_key="split", module_params={**small, **plain, **penalties})


def train(model, *callbacks, epochs=1, **options):
    rates = {"latent_lr": 1e-2, "decoder_lr": 1e-2, "attribute_nn_lr": 1e-2, "attribute_nn_wd": 0.0, "step_size_lr": 45}
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "log_every_n_steps": 1, "accelerator": "cpu"}
    torch.manual_seed(0)
    model.train(max_epochs=epochs, batch_size=32, plan_kwargs=rates, callbacks=list(callbacks), **{**quiet, **options})
    return model.training_plan


@pytest.mark.parametrize("given", [GIVEN, BY_CALL])
def test_sigma_is_the_residual_in_label_units(given, cells):
    model, monitor = make(cells), UncertaintyMonitor(table=False)
    train(model, AdoptLosses(**given), monitor, epochs=600)
    last = check_rows(monitor, set(given["tasks"]), {"expression"})
    found = residual(model, cells)
    print({"expression": (last["sigma/expression"], found)})
    assert last["sigma/expression"] == pytest.approx(found, rel=0.02)


def residual(model, cells):
    made = model.predict(cells[cells.obs["split"] == "train"])[0].X
    return float(np.sqrt(np.square(made - cells[cells.obs["split"] == "train"].X).mean()))


def gradients(cells, *callbacks, **penalties):
    seen = Gradients()
    train(make(cells, **penalties), *callbacks, seen)
    return seen.seen


@pytest.mark.parametrize("given", [GIVEN, BY_CALL])
def test_gradients_are_those_of_a_weighting_by_hand(given, cells):
    """Of three optimizers; the likelihood that no part names is added as it is."""
    rest, error, unknown = (
        gradients(cells, reconstruction_penalty=first, unknown_attribute_penalty=second)
        for first, second in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    )
    parts = {
        "rest": rest,
        "expression": {name: error[name] - value for name, value in rest.items()},
        "unknown": {name: unknown[name] - value for name, value in rest.items()},
    }
    monitor = UncertaintyMonitor(table=False)
    found = gradients(cells, AdoptLosses(**given), monitor)
    row = monitor.history.rows[0]
    assert row["weight/expression"] == pytest.approx(1 / (2 * row["loss/expression"]), rel=1e-5)
    penalty = float(make(cells).module.unknown_attribute_penalty)  # a constant term keeps its weight
    by_hand = {"rest": 1.0, "expression": row["weight/expression"], "unknown": penalty}
    check_gradients(found, weighted_sum(parts, by_hand), tolerance=1e-3)


def test_the_model_is_saved_and_loaded_by_the_host(cells, tmp_path):
    model = make(cells)
    plan = train(model, AdoptLosses(**GIVEN), UncertaintyMonitor(table=False), epochs=2)
    assert type(plan).__name__ == "biolordTrainingPlan"
    assert math.isfinite(plan.sigma()["expression"])
    model.save(str(tmp_path / "model"), save_anndata=False)
    again = biolord.Biolord.load(str(tmp_path / "model"), adata=cells)
    assert np.array_equal(again.predict(cells)[0].X, model.predict(cells)[0].X)
    assert type(unadopt(plan)) is biolordTrainingPlan


def make_plan(cells):
    model = make(cells)
    plan = biolordTrainingPlan(
        module=model.module, latent_lr=1e-2, decoder_lr=1e-2, attribute_nn_lr=1e-2, attribute_nn_wd=0.0
    )
    return model, plan


@pytest.mark.parametrize("learnt", [False, True])
def test_a_resumed_fit_equals_one_that_never_stopped_and_its_checkpoint_is_the_hosts(learnt, cells, tmp_path):
    """With a Trainer of one's own, as `train` cannot resume."""
    model, plain = make_plan(cells)
    batches = [dict(batch) for batch in model._make_data_loader(adata=cells, batch_size=32)]
    loader = DataLoader(batches, batch_size=None)
    beside = "module.decoder" if learnt else None

    def made():
        return adopt(make_plan(cells)[1], **GIVEN, weighting=weighting_of(learnt), beside=beside)

    path = check_resumed(pl, made, loader, tmp_path)
    saved = torch.load(path, weights_only=False)["state_dict"]
    assert saved.keys() == plain.state_dict().keys()
    plain.load_state_dict(saved)
    if not learnt:  # its optimizers have nothing that the host's lack
        pl.Trainer(**QUIET, max_epochs=6).fit(plain, loader, ckpt_path=path, weights_only=False)
        assert plain.current_epoch == 6
