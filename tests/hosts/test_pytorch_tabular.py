"""PyTorch Tabular: a network for several columns at once, behind a class of its own that builds and fits it."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig
from pytorch_tabular.models.category_embedding import CategoryEmbeddingModel

from lightning_uncertainty import AdoptLosses, UncertaintyMonitor, UncertaintyWeighting, adopt
from lightning_uncertainty.adoption import describe
from tests.hosts._fits import (
    HOST_WARNS,
    QUIET,
    RANK,
    RANKS,
    check_gradients,
    check_rows,
    check_two_are_as_one,
    gradients,
    same,
)

pytestmark = HOST_WARNS
TASKS = {"mass": "gaussian", "length": "gaussian"}
PARTS = {"mass": "log:train_loss_0", "length": "log:train_loss_1"}  # the number of the target
NOISE = {"mass": 2.0, "length": 0.3}
ROWS, BATCH = 512, 64


@functools.cache
def table():
    rng = np.random.default_rng(0)
    columns = pd.DataFrame(rng.normal(size=(ROWS, 3)), columns=["a", "b", "c"])
    columns["kind"] = rng.choice(["u", "v"], ROWS)
    known = {"mass": 5 * (columns.a + columns.b / 2) + 3 * (columns.kind == "u"), "length": columns.c - columns.b / 3}
    return columns.assign(**{name: known[name] + NOISE[name] * rng.normal(size=ROWS) for name in TASKS})


def tabular(epochs, lr=1e-2, **options):
    return TabularModel(
        data_config=DataConfig(target=list(TASKS), continuous_cols=["a", "b", "c"], categorical_cols=["kind"]),
        model_config=CategoryEmbeddingModelConfig(
            task="regression",
            layers="16",
            learning_rate=lr,
            batch_norm_continuous_input=False,  # with statistics of its own every process would be another network
        ),
        optimizer_config=OptimizerConfig(
            lr_scheduler="CosineAnnealingLR", lr_scheduler_params={"T_max": epochs, "eta_min": 0.0}
        ),
        trainer_config=TrainerConfig(
            batch_size=BATCH,
            max_epochs=epochs,
            accelerator="cpu",
            progress_bar="none",
            **{"trainer_kwargs": {"log_every_n_steps": 1}, "checkpoints_path": "saved", **options},
        ),
        verbose=False,
        suppress_lightning_logger=True,
    )


def fit(epochs, *callbacks, **options):
    model = tabular(epochs, **options)
    model.fit(train=table(), validation=table(), callbacks=[AdoptLosses(TASKS, PARTS), *callbacks])
    return model


def found_rmse(model):
    """Return the root mean square error over the table, by task."""
    found = model.predict(table())
    return {name: float((found[f"{name}_prediction"] - table()[name]).pow(2).mean() ** 0.5) for name in TASKS}


def test_sigma_is_the_residual():
    monitor = UncertaintyMonitor(table=False)
    model = fit(60, monitor, early_stopping=None, load_best=False)
    sigma, rmse = model.model.sigma(), found_rmse(model)
    print(f"pytorch-tabular: sigma {sigma}, rmse {rmse}, noise {NOISE}")
    for task in TASKS:
        assert sigma[task] == pytest.approx(rmse[task], rel=0.02)
        assert rmse[task] == pytest.approx(NOISE[task], rel=0.2)
    check_rows(monitor, set(TASKS), set(TASKS))
    assert len(monitor.history.rows) == 60 * ROWS // BATCH


def test_the_best_of_a_fit_is_loaded_and_sigma_stays():
    model = fit(6)  # by default the host loads the best checkpoint at the end
    assert model.trainer.checkpoint_callback.best_model_path
    assert all(value > 0 for value in model.model.sigma().values())


def test_the_host_reads_what_was_written():
    model = fit(3)
    model.save_model("whole")
    model.save_weights("weights.pt")
    loaded = TabularModel.load_model("whole")
    assert type(loaded.model) is CategoryEmbeddingModel
    assert loaded.predict(table()).equals(model.predict(table()))
    plain, _ = modules(3)
    plain.load_state_dict(torch.load("weights.pt"))
    assert same(plain, loaded.model)
    assert model.save_model_for_inference("module.pt")
    assert torch.load("module.pt", weights_only=False).sigma() == model.model.sigma()


def test_a_second_fit_goes_on():
    model = fit(2)
    before = model.model.sigma()
    model.train(model.model, model.datamodule, callbacks=[AdoptLosses(TASKS, PARTS)], max_epochs=4)
    assert all(0 < value < before[task] for task, value in model.model.sigma().items())


def test_losses_of_validation():
    validation = {"mass": "log:valid_loss_0", "length": "log:valid_loss_1"}
    model = tabular(1)
    model.fit(train=table(), validation=table(), callbacks=[AdoptLosses(TASKS, PARTS, validation=validation)])
    logged = {key: float(value) for key, value in model.trainer.callback_metrics.items()}
    for task, key in validation.items():
        assert logged[f"val/{task}/loss"] == pytest.approx(logged[key.removeprefix("log:")])


# -- with a Trainer of one's own ---------------------------------------------------------------------------------------


def modules(epochs):
    """Return the host's module, not adopted, and batches of the table in its order, each dealt out to the ranks."""
    model = tabular(epochs)
    data = model.prepare_dataloader(table(), table(), seed=0)
    torch.manual_seed(0)
    module = model.prepare_model(data)
    dealt = range(RANK, ROWS, RANKS)
    return module, torch.utils.data.DataLoader(data.train_dataset, batch_size=BATCH // RANKS, sampler=dealt)


def fitted(epochs, *, ckpt_path=None, weighting=None, **options):
    module, batches = modules(4)
    trainer = Trainer(
        callbacks=[AdoptLosses(TASKS, PARTS, weighting=weighting)],
        **{**QUIET, "max_epochs": epochs, "use_distributed_sampler": False, **options},
    )
    trainer.fit(module, batches, ckpt_path=ckpt_path, weights_only=False)  # the host's hyper-parameters are objects
    return trainer


def test_describe_finds_what_to_write():
    found = {name: part for part in describe(*modules(1)).candidates for name in part.names}
    assert {*PARTS.values(), "call:loss@0", "call:loss@1"} <= set(found)
    assert all(found[part].weight == 1 for part in PARTS.values())


def test_gradients_are_those_of_weights_by_hand():
    module, batches = modules(1)
    batch = next(iter(batches))
    adopt(module, TASKS, PARTS)
    ours = gradients(module, module.training_step(batch, 0))
    weights = module.take_row()["weight"]
    plain, _ = modules(1)
    residuals = plain(batch)["logits"] - batch["target"]
    total = sum(weights[name] * residuals[:, i].square().mean() for i, name in enumerate(TASKS))
    check_gradients(ours, gradients(plain, total), tolerance=1e-3)


@pytest.mark.parametrize("weighting", [None, UncertaintyWeighting()])
def test_a_resumed_fit_is_the_same_as_one_that_was_not_interrupted(weighting):
    whole = fitted(4, weighting=weighting)
    fitted(2, weighting=weighting).save_checkpoint("half.ckpt")
    resumed = fitted(4, weighting=weighting, ckpt_path="half.ckpt")
    assert resumed.global_step == whole.global_step == 4 * ROWS // BATCH
    assert same(resumed.lightning_module, whole.lightning_module)
    assert resumed.lightning_module.sigma() == whole.lightning_module.sigma()


def run(cells):
    """Be one of two processes."""
    return {cell: shared_fit(strategy=cell, devices=RANKS) for cell in cells}


def shared_fit(**options):
    module = fitted(2, **options).lightning_module
    return {"state": module.state_dict(), "sigma": module.sigma()}


@pytest.mark.cells("tests.hosts.test_pytorch_tabular", "ddp")
def test_two_processes_are_as_one(found):
    check_two_are_as_one(found, shared_fit())
