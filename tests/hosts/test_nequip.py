"""NequIP: an interatomic potential trained by its own command from a YAML file."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase.calculators.singlepoint import SinglePointCalculator
from lightning.pytorch import Trainer
from nequip.data import from_ase
from nequip.data.AtomicDataDict import batched_from_list
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.train import EMALightningModule, NequIPLightningModule
from nequip.utils.global_state import set_global_state
from torch.utils.data import DataLoader

from lightning_uncertainty import AdoptLosses, UncertaintyMonitor, adopt
from lightning_uncertainty.adoption import describe
from tests.hosts._fits import HOST_WARNS, QUIET, RANK, RANKS, check_gradients, check_rows, gradients, same

pytestmark = HOST_WARNS
TASKS = {"energy": "gaussian", "forces": "gaussian"}
LOGGED = {"energy": "log:train_loss_step/per_atom_energy_mse", "forces": "log:train_loss_step/forces_mse"}
WEIGHTS = {
    "energy": "weight:loss.entries['per_atom_energy_mse'].coeff",
    "forces": "weight:loss.entries['forces_mse'].coeff",
}
NOISE = {"energy": 0.3, "forces": 0.3}  # eV per atom, eV per angstrom
FRAMES, ATOMS, BATCH = 128, 4, 32

ADOPTING = """
- _target_: lightning_uncertainty.AdoptLosses
  tasks: {energy: gaussian, forces: gaussian}
  parts:
    energy: log:train_loss_step/per_atom_energy_mse
    forces: log:train_loss_step/forces_mse
- _target_: lightning_uncertainty.UncertaintyMonitor
"""  # what a user adds to the Trainer's callbacks

CONFIG = """
run: [train]
data:
  _target_: nequip.data.datamodule.ASEDataModule
  seed: 1
  train_file_path: frames.xyz
  val_file_path: frames.xyz
  transforms:
    - _target_: nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper
      model_type_names: [C]
      chemical_species_to_atom_type_map: {C: C}
    - _target_: nequip.data.transforms.NeighborListTransform
      r_max: 4.0
  train_dataloader: {_target_: torch.utils.data.DataLoader, batch_size: 32}
  val_dataloader: {_target_: torch.utils.data.DataLoader, batch_size: 32}
trainer:
  _target_: lightning.Trainer
  accelerator: cpu
  max_epochs: 3
  enable_progress_bar: false
  log_every_n_steps: 1
  logger: false
  callbacks:
    - {_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: saved, save_last: true}
training_module:
  _target_: nequip.train.EMALightningModule
  ema_decay: 0.9
  loss:
    _target_: nequip.train.EnergyForceLoss
    per_atom_energy: true
    coeffs: {total_energy: 1.0, forces: 1.0}
  val_metrics:
    _target_: nequip.train.EnergyForceMetrics
    coeffs: {total_energy_mae: 1.0, forces_mae: 1.0}
  optimizer: {_target_: torch.optim.Adam, lr: 0.01}
  model:
    _target_: nequip.model.NequIPGNNModel
    seed: 1
    model_dtype: float32
    type_names: [C]
    r_max: 4.0
    num_layers: 1
    l_max: 1
    num_features: 8
    radial_mlp_width: 16
    avg_num_neighbors: 3.0
    per_type_energy_shifts: 0.0
    per_type_energy_scales: 1.0
"""


@functools.cache
def frames():
    """Four atoms on springs: their energy and forces, both with noise."""
    rng, made = np.random.default_rng(0), []
    for _ in range(FRAMES):
        places = np.array([[0, 0, 0], [1.5, 0, 0], [0, 1.5, 0], [0, 0, 1.5]]) + 0.15 * rng.normal(size=(ATOMS, 3))
        apart = places[:, None] - places[None]
        length = np.sqrt((apart**2).sum(-1) + np.eye(ATOMS))
        stretch = 2.0 * (length - 1.8) * (1 - np.eye(ATOMS))
        energy = (stretch**2).sum() / 8 + ATOMS * NOISE["energy"] * rng.normal()
        forces = -(stretch[..., None] * apart / length[..., None]).sum(1)
        atoms = ase.Atoms("C" * ATOMS, positions=places)
        atoms.calc = SinglePointCalculator(
            atoms, energy=energy, forces=forces + NOISE["forces"] * rng.normal(size=(ATOMS, 3))
        )
        made.append(atoms)
    return made


def loader():
    """Return batches of all frames in their order, each dealt out to the ranks that there are."""
    typed, near = ChemicalSpeciesToAtomTypeMapper(["C"]), NeighborListTransform(r_max=4.0)
    graphs = [near(typed(from_ase(atoms))) for atoms in frames()]
    return DataLoader(graphs, BATCH // RANKS, sampler=range(RANK, FRAMES, RANKS), collate_fn=batched_from_list)


set_global_state()  # as the host's own command does


def potential(*, kind=NequIPLightningModule, energy=1.0, forces=1.0, **optimizer):
    options = copy.deepcopy(yaml.safe_load(CONFIG)["training_module"])
    options.pop("_target_")
    if kind is NequIPLightningModule:
        options.pop("ema_decay")
    options["loss"]["coeffs"] = {"total_energy": energy, "forces": forces}
    options["optimizer"].update(optimizer)
    module = kind(num_datasets={"train": 1, "val": 1, "test": 0, "predict": 0}, **options)
    module.world_size = RANKS  # as the host's own command does
    return module


def fitted(epochs, *callbacks, parts=LOGGED, global_losses=False, ckpt_path=None, module=None, **options):
    """Return a Trainer that has fitted a potential adopted by its callback."""
    trainer = Trainer(
        callbacks=[AdoptLosses(TASKS, parts, global_losses=global_losses), *callbacks],
        **{**QUIET, "max_epochs": epochs, "inference_mode": False, "use_distributed_sampler": False, **options},
    )
    trainer.fit(module or potential(), loader(), ckpt_path=ckpt_path)
    return trainer


def found_rmse(module):
    """Return the root mean square error over all frames, by task."""
    energy, forces = [], []
    for batch in loader():
        made = module(batch.copy())
        energy.append((made["total_energy"] - batch["total_energy"]).detach() / ATOMS)
        forces.append((made["forces"] - batch["forces"]).detach())
    return {name: float(torch.cat(e).square().mean().sqrt()) for name, e in (("energy", energy), ("forces", forces))}


@pytest.mark.parametrize("parts", [LOGGED, WEIGHTS])
def test_sigma_is_the_residual(parts):
    monitor = UncertaintyMonitor(table=False)
    module = potential()
    module.lr_scheduler_config = {
        "scheduler": {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": 200},
        "interval": "epoch",
    }
    fitted(200, monitor, parts=parts, module=module)
    sigma, rmse = module.sigma(), found_rmse(module)
    print(f"nequip: sigma {sigma}, rmse {rmse}, noise {NOISE}")
    for task in TASKS:
        assert sigma[task] == pytest.approx(rmse[task], rel=0.02)
    check_rows(monitor, set(TASKS), set(TASKS))
    assert len(monitor.history.rows) == 200 * FRAMES // BATCH


@pytest.mark.parametrize("parts", [LOGGED, WEIGHTS])
def test_gradients_are_those_of_weights_by_hand(parts):
    batch = next(iter(loader()))
    ours = adopt(potential(forces=3.0), TASKS, parts)
    found = gradients(ours.model, ours.training_step(batch.copy(), 0))
    weights = ours.take_row()["weight"]
    theirs = potential(**weights)  # which the host scales to a sum of one
    expected = gradients(theirs.model, sum(weights.values()) * theirs.training_step(batch.copy(), 0))
    check_gradients(found, expected, tolerance=1e-3)


def test_describe_finds_what_to_write():
    found = {name: part for part in describe(potential(forces=3.0), loader()).candidates for name in part.names}
    assert set(LOGGED.values()) <= set(found)
    assert found[LOGGED["forces"]].weight == 0.75


def test_a_resumed_fit_is_the_same_as_one_that_was_not_interrupted():
    whole = fitted(4, module=potential(kind=EMALightningModule))
    fitted(2, module=potential(kind=EMALightningModule)).save_checkpoint("half.ckpt")
    resumed = fitted(4, module=potential(kind=EMALightningModule), ckpt_path="half.ckpt")
    assert resumed.global_step == whole.global_step
    assert same(resumed.lightning_module, whole.lightning_module)
    assert resumed.lightning_module.sigma() == whole.lightning_module.sigma()


def nequip_train(*overrides, callbacks=ADOPTING):
    """Run the host's own command in this folder."""
    config = yaml.safe_load(CONFIG)
    config["trainer"]["callbacks"][:0] = yaml.safe_load(callbacks)
    Path("config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    ase.io.write("frames.xyz", frames(), format="extxyz")
    command = [Path(sys.executable).parent / "nequip-train", "-cp", Path.cwd(), "-cn", "config", "hydra.run.dir=."]
    ran = subprocess.run([*command, *overrides], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout + ran.stderr


def test_its_own_command_needs_no_code():
    said = nequip_train()
    assert "Task uncertainty after 12 steps" in said
    written = torch.load("saved/last.ckpt", weights_only=False)
    assert written["lightning_uncertainty"]
    plain = EMALightningModule.load_from_checkpoint("saved/last.ckpt", weights_only=False)
    assert type(plain) is EMALightningModule
    assert written["state_dict"].keys() == plain.state_dict().keys()
    resumed = nequip_train("++ckpt_path=saved/last.ckpt", "trainer.max_epochs=4")
    assert "Task uncertainty after 16 steps" in resumed
    assert "Task uncertainty" not in nequip_train("++ckpt_path=saved/last.ckpt", "trainer.max_epochs=5", callbacks="[]")


def run(cells):
    """Be one of two processes."""
    return {cell: shared_fit(cell, strategy="ddp", devices=RANKS) for cell in cells}


def shared_fit(named, **options):
    """Fit by plain gradient descent, to which the size of a gradient matters."""
    module = potential(_target_="torch.optim.SGD", lr=1e-2)
    parts = {"logged": LOGGED, "weights": WEIGHTS}[named]
    fitted(2, parts=parts, module=module, global_losses=True, **options)
    return {"state": module.model.state_dict(), "sigma": module.sigma()}


@pytest.mark.cells("tests.hosts.test_nequip", "{named}")
@pytest.mark.parametrize("named", ["logged", "weights"])
def test_two_processes_are_as_one(found, named):
    """The host's losses are those of the global batch already, times the number of ranks."""
    one = shared_fit(named)
    for rank in (0, 1):
        assert found(named, rank)["sigma"] == pytest.approx(one["sigma"], rel=1e-5)
        for name, value in one["state"].items():
            torch.testing.assert_close(found(named, rank)["state"][name], value, rtol=1e-4, atol=1e-5)
