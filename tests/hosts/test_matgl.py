"""MatGL: an interatomic potential whose forces are gradients of its energy."""

from __future__ import annotations

import functools

import matgl
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from matgl.ext.pymatgen import Molecule2Graph
from matgl.graph.data import MGLDataset, collate_fn_pes
from matgl.models import TensorNet
from matgl.utils.training import MGLPotentialTrainer, PotentialLightningModule
from pymatgen.core import Molecule
from torch.utils.data import DataLoader

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
TASKS = {"energy": "gaussian", "forces": "gaussian"}
PARTS = {"energy": "weight:energy_weight", "forces": "weight:force_weight"}
CALLS = {"energy": "call:loss@0", "forces": "call:loss@1"}
TITLES = {"energy": "Energy", "forces": "Force", "stress": "Stress"}  # in the host's results
NOISE = {"energy": 0.3, "forces": 0.3}  # eV per atom, eV per angstrom
FRAMES, ATOMS, BATCH = 128, 4, 32


def frame(rng):
    """Four atoms on springs: a molecule, its energy and its forces, both with noise."""
    places = np.array([[0, 0, 0], [1.5, 0, 0], [0, 1.5, 0], [0, 0, 1.5]]) + 0.15 * rng.normal(size=(ATOMS, 3))
    apart = places[:, None] - places[None]
    length = np.sqrt((apart**2).sum(-1) + np.eye(ATOMS))
    stretch = 2.0 * (length - 1.8) * (1 - np.eye(ATOMS))
    energy = (stretch**2).sum() / 8 + ATOMS * NOISE["energy"] * rng.normal()
    forces = -(stretch[..., None] * apart / length[..., None]).sum(1) + NOISE["forces"] * rng.normal(size=(ATOMS, 3))
    return Molecule(["C"] * ATOMS, places), energy, forces.tolist()


@functools.cache
def frames():
    rng = np.random.default_rng(0)
    molecules, energies, forces = zip(*(frame(rng) for _ in range(FRAMES)), strict=True)
    stresses = [np.zeros((3, 3)).tolist()] * FRAMES
    return MGLDataset(
        structures=list(molecules),
        converter=Molecule2Graph(element_types=("C",), cutoff=4.0),
        labels={"energies": list(energies), "forces": list(forces), "stresses": stresses},
        save_cache=False,
    )


def network():
    torch.manual_seed(0)
    return TensorNet(element_types=("C",), units=8, nblocks=1, num_rbf=8, cutoff=4.0, is_intensive=False)


def loader():
    """Return batches of all frames in their order, each dealt out to the ranks that there are."""
    dealt = range(RANK, FRAMES, RANKS)
    return DataLoader(frames(), batch_size=BATCH // RANKS, sampler=dealt, collate_fn=collate_fn_pes)


def potential(**options):
    return PotentialLightningModule(network(), **{"lr": 1e-2, **options})


def fitted(epochs, *callbacks, ckpt_path=None, weighting=None, **options):
    """Return a Trainer that has fitted a potential adopted by its callback."""
    trainer = Trainer(
        callbacks=[AdoptLosses(TASKS, PARTS, weighting=weighting), *callbacks],
        **{**QUIET, "max_epochs": epochs, "inference_mode": False, "use_distributed_sampler": False, **options},
    )
    trainer.fit(potential(), loader(), ckpt_path=ckpt_path)
    return trainer


def found_rmse(module):
    """Return the root mean square error over all frames, by task."""
    (batch,) = DataLoader(frames(), batch_size=FRAMES, collate_fn=collate_fn_pes)
    results, _ = module.step(batch)
    return {"energy": float(results["Energy_RMSE"]), "forces": float(results["Force_RMSE"])}


def test_sigma_is_the_residual():
    monitor = UncertaintyMonitor(table=False)
    host = MGLPotentialTrainer(
        network(),
        stress_weight=0.0,
        loss="mse_loss",  # its own default, Huber, is half a square
        lr=1e-2,
        batch_size=BATCH,
        max_epochs=150,
        decay_steps=150,
        accelerator="cpu",
        loader_kwargs={"frac_list": (1.0, 0.0, 0.0)},
        trainer_kwargs={
            **{k: v for k, v in QUIET.items() if k != "accelerator"},
            "callbacks": [AdoptLosses(TASKS, PARTS), monitor],
        },
    )
    host.fit({"train": frames(), "valid": frames(), "test": frames()})
    sigma, rmse = host.lit_module.sigma(), found_rmse(host.lit_module)
    print(f"matgl: sigma {sigma}, rmse {rmse}, noise {NOISE}")
    for task in TASKS:
        assert sigma[task] == pytest.approx(rmse[task], rel=0.02)
    check_rows(monitor, set(TASKS), set(TASKS))
    assert len(monitor.history.rows) == 150 * FRAMES // BATCH


@pytest.mark.parametrize("parts", [PARTS, CALLS])
def test_gradients_are_those_of_weights_by_hand(parts):
    batch = next(iter(loader()))
    ours = adopt(potential(), TASKS, parts)
    found = gradients(ours.model, ours.training_step(batch, 0)["loss"])
    weights = ours.take_row()["weight"]
    theirs = potential(energy_weight=weights["energy"], force_weight=weights["forces"])
    check_gradients(found, gradients(theirs.model, theirs.training_step(batch, 0)["loss"]))


def labels(batch):
    """Return how many labels each task has in a batch: those of the host's are energies, forces and stresses."""
    return {name: label.isfinite().sum() for name, label in zip(("energy", "forces", "stress"), batch[3:], strict=True)}


@pytest.mark.parametrize("lacking", [10, 0])
def test_labels_may_be_missing(lacking):
    """As of the host's own `allow_missing_labels`; without any label of a task its loss is NaN."""
    tasks, parts = {**TASKS, "stress": "gaussian"}, {**PARTS, "stress": "weight:stress_weight"}
    batch = list(next(iter(loader())))
    batch[4] = torch.where(torch.arange(len(batch[4]))[:, None] < lacking, batch[4], torch.nan)
    options = {"allow_missing_labels": True, "stress_weight": 0.1}
    ours = adopt(potential(**options), tasks, parts, count=labels, may_be_absent=["forces"])
    found = gradients(ours.model, ours.training_step(tuple(batch), 0)["loss"])
    row = ours.take_row()
    assert set(row["loss"]) == {name for name in tasks if lacking or name != "forces"}
    theirs = potential(**options)
    results, _ = theirs.step(tuple(batch))
    squares = {name: results[f"{title}_RMSE"].square() for name, title in TITLES.items()}
    assert row["loss"] == pytest.approx({name: float(squares[name]) for name in row["loss"]})
    check_gradients(found, gradients(theirs.model, sum(w * squares[name] for name, w in row["weight"].items())))


def test_describe_finds_what_to_write():
    found = {name: part for part in describe(potential(energy_weight=3.0), loader()).candidates for name in part.names}
    assert set(PARTS.values()) <= set(found)
    assert found[PARTS["energy"]].weight == 3
    assert found[PARTS["energy"]].loss == pytest.approx(
        float(potential().step(next(iter(loader())))[0]["Energy_RMSE"]) ** 2
    )


def test_losses_of_validation():
    trainer = Trainer(
        callbacks=[AdoptLosses(TASKS, PARTS, validation=CALLS)],
        **{**QUIET, "max_epochs": 1, "inference_mode": False},
    )
    trainer.fit(potential(), loader(), loader())
    rmse = found_rmse(trainer.lightning_module)
    for task in TASKS:
        assert float(trainer.callback_metrics[f"val/{task}/loss"]) == pytest.approx(rmse[task] ** 2, rel=1e-4)


@pytest.mark.parametrize("weighting", [None, UncertaintyWeighting()])
def test_a_resumed_fit_is_the_same_as_one_that_was_not_interrupted(weighting):
    whole = fitted(4, weighting=weighting)
    fitted(2, weighting=weighting).save_checkpoint("half.ckpt")
    resumed = fitted(4, weighting=weighting, ckpt_path="half.ckpt")
    assert resumed.global_step == whole.global_step
    assert same(resumed.lightning_module, whole.lightning_module)
    assert resumed.lightning_module.sigma() == whole.lightning_module.sigma()


def test_the_host_reads_what_was_written():
    trainer = fitted(2)
    trainer.save_checkpoint("host.ckpt")
    plain = PotentialLightningModule.load_from_checkpoint("host.ckpt", model=network())
    assert type(plain) is PotentialLightningModule
    assert same(plain.model, trainer.lightning_module.model)
    Trainer(**{**QUIET, "max_epochs": 3, "inference_mode": False}).fit(plain, loader(), ckpt_path="host.ckpt")
    trainer.lightning_module.model.save("potential")
    assert same(matgl.load_model("potential"), trainer.lightning_module.model)


def test_a_checkpoint_of_the_host_alone_is_taken_up():
    alone = Trainer(**{**QUIET, "max_epochs": 2, "inference_mode": False})
    alone.fit(potential(), loader())
    alone.save_checkpoint("alone.ckpt")
    taken = fitted(3, ckpt_path="alone.ckpt")
    assert taken.global_step == 3 * FRAMES // BATCH
    assert all(value > 0 for value in taken.lightning_module.sigma().values())


def run(cells):
    """Be one of two processes."""
    return {cell: shared_fit(strategy=cell, devices=RANKS) for cell in cells}


def shared_fit(**options):
    module = fitted(2, **options).lightning_module
    return {"state": module.model.state_dict(), "sigma": module.sigma()}


@pytest.mark.cells("tests.hosts.test_matgl", "ddp")
def test_two_processes_are_as_one(found):
    check_two_are_as_one(found, shared_fit())
