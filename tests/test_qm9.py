import importlib
import logging
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
METHANE = "[[0.,0.,0.],[0.63,0.63,0.63],[-0.63,-0.63,0.63],[-0.63,0.63,-0.63],[0.63,-0.63,-0.63]]"


@pytest.fixture
def molecules(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("_molecules")


def frame_of(molecules, elements, places):
    numbers = {column: 1.0 + len(elements) for _, column, _ in molecules.PROPERTIES.values()}
    return pd.DataFrame([{"Elements": str(elements), "XYZ_Ang": str(places), **numbers}])


def test_hydrogen_has_the_coulomb_matrix_of_two_protons(molecules):
    charges, positions = molecules.atoms(
        frame_of(molecules, ["H", "H"], [[0.0, 0.0, 0.0], [0.0, 0.0, 2 * molecules.BOHR]])
    )
    found = molecules.describe(charges, positions)
    assert found.shape == (1, 34)
    expected = torch.tensor([2.0, 0, 0, 0, 0, 0.5 + 1 / 2, 0.5 - 1 / 2], dtype=torch.float64)
    torch.testing.assert_close(found[0, :7], expected)
    assert found[0, 7:].abs().max() < 1e-12


def test_neither_order_nor_place_of_the_atoms_matters(molecules):
    charges, positions = molecules.atoms(frame_of(molecules, ["C", "H", "H", "H", "H"], METHANE))
    order = torch.randperm(molecules.MOST_ATOMS, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    moved = (positions @ turn + 3.0)[:, order]
    torch.testing.assert_close(molecules.describe(charges[:, order], moved), molecules.describe(charges, positions))


def test_energies_are_of_atomisation(molecules):
    """Those of methane as MoleculeNet has them, in kcal/mol."""
    frame = frame_of(molecules, ["C", "H", "H", "H", "H"], METHANE)
    energies = {"U0": -40.47893, "U": -40.476062, "H": -40.475117, "G": -40.498597}  # QM9's first molecule
    for task, energy in energies.items():
        frame[molecules.PROPERTIES[task][1]] = energy
    found = dict(
        zip(molecules.PROPERTIES, molecules.properties(frame, molecules.atoms(frame)[0])[0].tolist(), strict=True)
    )
    kcal = [found[task] / 43.3641 for task in energies]
    assert kcal == pytest.approx([-396.000, -398.644, -401.015, -372.472], abs=2e-3)


@pytest.mark.slow
def test_the_table_is_made(molecules, tmp_path, monkeypatch, capsys):
    """With a qm9pack of our own, of molecules that are none."""
    qm9 = importlib.import_module("qm9")
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(65):
        count = int(torch.randint(2, 9, (1,), generator=generator))
        elements = ["CHNOF"[i] for i in torch.randint(5, (count,), generator=generator)]
        frame = frame_of(molecules, elements, torch.randn(count, 3, generator=generator).tolist())
        frame[[column for _, column, _ in molecules.PROPERTIES.values()]] = torch.randn(
            11, generator=generator
        ).tolist()
        rows.append(frame)
    data = tmp_path / "site" / "qm9pack" / "data"
    data.mkdir(parents=True)
    data.with_name("__init__.py").touch()
    for part, some in enumerate((rows[:30], rows[30:]), start=1):
        pd.concat(some).to_csv(data / f"qm9_part{part}.csv")
    known = tmp_path / "site" / "qm9pack-0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: qm9pack\nVersion: 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    options = ["--epochs", "1", "--seeds", "0", "--folder", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["qm9.py", *options])
    threads = torch.get_num_threads()
    try:
        qm9.main()
    finally:
        torch.set_num_threads(threads)
        logging.disable(logging.NOTSET)
    found = capsys.readouterr().out
    assert found.startswith(f"$ python benchmarks/qm9.py {' '.join(options)}\n")
    assert "55 molecules for training, 5 for validation, 5 for testing" in found
    names = [line.split("|")[1].strip() for line in found.splitlines() if line.startswith("| ")]
    assert {*qm9.WEIGHTINGS, "single task", "searched"} <= {*names}
