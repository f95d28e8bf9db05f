"""QM9 as tensors: what describes a molecule, and eleven properties in the units of the published tables."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from _rows import Rows
from torch import Tensor

MILLI_EV = 27.211386246e3  # in a hartree
BOHR = 0.529177210903  # in angstrom
MOST_ATOMS = 29

PROPERTIES = {  # task, unit, column of qm9pack, its factor
    "mu": ("D", "Dipole_debye", 1.0),
    "alpha": ("a0³", "Polarizability_bohr3", 1.0),
    "homo": ("meV", "HOMO_au", MILLI_EV),
    "lumo": ("meV", "LUMO_au", MILLI_EV),
    "R2": ("a0²", "R2_bohr2", 1.0),
    "ZPVE": ("meV", "ZPVE_au", MILLI_EV),
    "U0": ("meV", "InternalEnergy_0K_au", MILLI_EV),
    "U": ("meV", "InternalEnergy_298K_au", MILLI_EV),
    "H": ("meV", "Enthalphy_298K_au", MILLI_EV),  # so spelt there
    "G": ("meV", "GibbsFreeEnergy_298K_au", MILLI_EV),
    "cv": ("cal/mol/K", "Heatcapacity_Cv_cal_mol_K", 1.0),
}
ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
FREE_ATOMS = {  # hartree, QM9's file atomref.txt: energies are of atomisation, as in the published tables
    "U0": (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
    "U": (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
    "H": (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
    "G": (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
}

BATCH = 512
SPLIT_SEED = 0


class Split(NamedTuple):
    """The molecules, and by task the deviation that its targets were divided by."""

    train: Rows
    val: Rows
    test: Rows
    std: dict[str, float]


def load(molecules: int | None) -> Split:
    """Read, describe, split and standardise QM9, or so many molecules of it."""
    frame = read()
    order = torch.randperm(len(frame), generator=torch.Generator().manual_seed(SPLIT_SEED))[:molecules].numpy()
    frame = frame.iloc[order]
    charges, positions = atoms(frame)
    features, targets = describe(charges, positions), properties(frame, charges)
    held = min(10_000, len(frame) // 13)
    train = slice(2 * held, None)
    features, _ = standardise(features, train)
    targets, std = standardise(targets, train)
    columns = {"x": features, **dict(zip(PROPERTIES, targets.split(1, dim=1), strict=True))}
    parts = [
        Rows({name: column[part] for name, column in columns.items()})
        for part in (train, slice(held, 2 * held), slice(held))
    ]
    return Split(*parts, dict(zip(PROPERTIES, std.tolist(), strict=True)))


def read() -> pd.DataFrame:
    """Return the rows of qm9pack's files, without importing it, which needs setuptools' old pkg_resources."""
    spec = find_spec("qm9pack")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the benchmark needs the data: pip install '.[bench]'")
    files = sorted(Path(spec.origin).with_name("data").glob("qm9_part*.csv"))
    columns = ["Elements", "XYZ_Ang", *(column for _, column, _ in PROPERTIES.values())]
    return pd.concat([pd.read_csv(file, usecols=columns) for file in files], ignore_index=True)


def atoms(frame: pd.DataFrame) -> tuple[Tensor, Tensor]:
    """Return nuclear charges `[N, 29]`, 0 where there is no atom, and positions in bohr `[N, 29, 3]`."""
    charges, positions = np.zeros((len(frame), MOST_ATOMS)), np.zeros((len(frame), MOST_ATOMS, 3))
    bare = str.maketrans("", "", "[]' ")
    for row, (names, places) in enumerate(zip(frame["Elements"], frame["XYZ_Ang"], strict=True)):
        found = [ELEMENTS[name] for name in names.translate(bare).split(",")]
        charges[row, : len(found)] = found
        positions[row, : len(found)] = np.array(places.translate(bare).split(","), float).reshape(-1, 3)
    return torch.from_numpy(charges), torch.from_numpy(positions / BOHR)


def describe(charges: Tensor, positions: Tensor) -> Tensor:
    """Return how many atoms there are of each element, and the eigenvalues of the Coulomb matrix, `[N, 34]`.

    Largest magnitude first (Rupp et al., "Fast and Accurate Modeling of Molecular Atomization Energies with Machine
    Learning", PRL 2012): neither the order of the atoms nor where the molecule lies changes them.
    """
    found = []
    for z, x in zip(charges.split(8192), positions.split(8192), strict=True):
        distance = torch.linalg.vector_norm(x[:, :, None] - x[:, None], dim=-1)
        matrix = torch.where(distance > 0, z[:, :, None] * z[:, None] / distance, 0.0)
        matrix.diagonal(dim1=1, dim2=2).copy_(0.5 * z**2.4)
        values = torch.linalg.eigvalsh(matrix)
        found.append(values.gather(1, values.abs().argsort(dim=1, descending=True)))
    return torch.cat([counts(charges), torch.cat(found)], dim=1)


def counts(charges: Tensor) -> Tensor:
    """Return how many atoms there are of each element, `[N, 5]`."""
    return torch.stack([(charges == charge).sum(1) for charge in ELEMENTS.values()], dim=1).double()


def properties(frame: pd.DataFrame, charges: Tensor) -> Tensor:
    """Return the targets in the units of the published tables, `[N, 11]`."""
    found, numbers = [], counts(charges)
    for task, (_, column, factor) in PROPERTIES.items():
        value = torch.tensor(frame[column].to_numpy())
        if task in FREE_ATOMS:
            value = value - numbers @ torch.tensor(FREE_ATOMS[task], dtype=torch.float64)
        found.append(factor * value)
    return torch.stack(found, dim=1)


def standardise(values: Tensor, train: slice) -> tuple[Tensor, Tensor]:
    """Return columns with mean 0 and deviation 1 over the training molecules, in float32, and the deviations."""
    std, mean = torch.std_mean(values[train], dim=0)
    return ((values - mean) / (std + 1e-6)).float(), std
