"""chemprop's message-passing network: three targets of very different scale, most labels of one missing."""

import math

import numpy as np
import pytest
import torch
from chemprop import data, models
from chemprop import nn as chemprop_nn
from chemprop.cli.main import main as chemprop_cli
from lightning import pytorch as pl
from rdkit import Chem
from torch.utils.data import DataLoader

from lightning_uncertainty import AdoptLosses, MultiTaskMixin, UncertaintyMonitor, adopt
from lightning_uncertainty.adoption import unadopt
from tests._launch import RANKS
from tests.hosts._fits import (
    QUIET,
    check_gradients,
    check_resumed,
    check_rows,
    first_gradients,
    weighted_sum,
    weighting_of,
)

TASKS = ("size", "hetero", "mass")
NOISE = (0.02, 1.0, 200.0)
MISSING = (0.1, 0.3, 0.6)
PROGRAM = "tests.hosts.test_chemprop"


def labels(batch):
    return dict(zip(TASKS, batch.Y.isfinite().sum(0), strict=True))


def all_labels(batch):
    return batch.Y.isfinite().sum()


# what a user writes
GIVEN = {
    "tasks": dict.fromkeys(TASKS, "gaussian"),
    "parts": "weight:predictor.criterion.task_weights",
    "count": labels,
    "divisor": all_labels,
}


def points():
    rng = np.random.default_rng(0)
    groups = ("C", "N", "O", "CC", "C(C)C", "C(=O)N", "S", "C(F)(F)", "c1ccccc1", "C=C")
    smiles = list(dict.fromkeys("C" + "".join(rng.choice(groups, rng.integers(2, 7))) for _ in range(400)))[:192]
    molecules = [Chem.MolFromSmiles(text) for text in smiles]
    hetero = np.array([sum(atom.GetAtomicNum() != 6 for atom in each.GetAtoms()) for each in molecules], float)
    size = np.array([each.GetNumAtoms() for each in molecules], float)
    y = np.stack([0.01 * size, hetero, 100 * (size - hetero)], 1) + rng.normal(size=(192, 3)) * NOISE
    y[rng.random(y.shape) < MISSING] = np.nan
    return [data.MoleculeDatapoint(each, target) for each, target in zip(molecules, y, strict=True)]


def loader(rows=slice(None), batch_size=32, shuffle=False):
    return data.build_dataloader(
        data.MoleculeDataset(points()[rows]), batch_size=batch_size, shuffle=shuffle, seed=0, num_workers=0
    )


def make(weights=(1.0, 1.0, 1.0), **options):
    """Whatever the host's weights, adopted or not, it starts from the same parameters."""
    torch.manual_seed(0)
    head = chemprop_nn.RegressionFFN(
        n_tasks=3, hidden_dim=16, input_dim=16, criterion=chemprop_nn.MSE(task_weights=list(weights))
    )
    rates = {"warmup_epochs": 1, "init_lr": 1e-3, "max_lr": 1e-2, "final_lr": 1e-5}
    return models.MPNN(
        chemprop_nn.BondMessagePassing(d_h=16), chemprop_nn.MeanAggregation(), head, **{**rates, **options}
    )


def residuals(net, batches):
    """The RMSE of every task over all its labels."""
    net.eval()
    with torch.no_grad():
        pairs = [(net(batch.bmg), batch.Y) for batch in batches]
    errors = torch.cat([made - target for made, target in pairs])
    return dict(zip(TASKS, errors.square().nanmean(0).sqrt().tolist(), strict=True))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (5.0, 1.0, 0.01)])
def test_sigma_is_the_residual_in_label_units(weights):
    net, monitor = adopt(make(weights), **GIVEN), UncertaintyMonitor(table=False)
    pl.Trainer(**QUIET, max_epochs=200, callbacks=[monitor]).fit(net, loader(shuffle=True))
    last, found = check_rows(monitor, set(TASKS), set(TASKS)), residuals(net, loader())
    print({task: (last[f"sigma/{task}"], found[task]) for task in TASKS})
    assert {task: last[f"sigma/{task}"] for task in TASKS} == pytest.approx(found, rel=0.02)


def test_sigma_is_off_without_the_divisor():
    """chemprop divides every task's sum by the labels of all."""
    net = adopt(make(), GIVEN["tasks"], GIVEN["parts"])
    pl.Trainer(**QUIET, max_epochs=20).fit(net, loader())
    right = adopt(make(), **GIVEN)
    pl.Trainer(**QUIET, max_epochs=20).fit(right, loader())
    assert net.sigma()["mass"] < 0.6 * right.sigma()["mass"]


def test_a_target_whose_labels_come_late():
    """The first batches have none of it; once it has some it is weighed as if they had never been."""
    batches = list(loader())
    for batch in batches[:2]:
        batch.Y[:, 2] = math.nan
    net, monitor = adopt(make(), **GIVEN), UncertaintyMonitor(table=False)
    pl.Trainer(**QUIET, max_epochs=1, callbacks=[monitor]).fit(net, DataLoader(batches, batch_size=None))
    rows = monitor.history.rows
    assert [sorted(task for task in TASKS if f"sigma/{task}" in row) for row in rows[:3]] == [
        *[["hetero", "size"]] * 2,
        sorted(TASKS),
    ]
    assert rows[2]["sigma/mass"] == pytest.approx(math.sqrt(rows[2]["loss/mass"]), rel=1e-5)


def test_gradients_are_those_of_a_weighting_by_hand():
    """The host alone, with one weight of 1 and others of 0, gives each loss's gradient."""
    batch = next(iter(loader()))
    parts = {task: first_gradients(pl, make([float(other == task) for other in TASKS]), loader()) for task in TASKS}
    counts, total = labels(batch), all_labels(batch)
    with torch.no_grad():
        errors = (make()(batch.bmg) - batch.Y).square().nanmean(0)
    by_hand = {task: (total / counts[task] / (2 * errors[i])).item() for i, task in enumerate(TASKS)}
    found = first_gradients(pl, adopt(make((3.0, 1.0, 0.5)), **GIVEN), loader())
    check_gradients(found, weighted_sum(parts, by_hand), tolerance=1e-4)


@pytest.mark.parametrize("learnt", [False, True])
def test_a_resumed_fit_equals_one_that_never_stopped_and_its_checkpoint_is_the_hosts(learnt, tmp_path, capsys):
    path = check_resumed(
        pl, lambda: adopt(make(), **GIVEN, weighting=weighting_of(learnt)), loader(), tmp_path, max_epochs=4
    )
    plain = make()
    pl.Trainer(**QUIET, max_epochs=1).fit(plain, loader())
    saved = torch.load(path, weights_only=False)
    assert saved["state_dict"].keys() == plain.state_dict().keys()
    batch = next(iter(loader()))
    made = []
    for net in (models.MPNN.load_from_checkpoint(path), models.load_model(path)):
        assert type(net) is models.MPNN
        made.append(net.eval()(batch.bmg))
    assert torch.equal(*made)
    (tmp_path / "molecules.csv").write_text("smiles\nCCO\nc1ccccc1N\n")
    chemprop_cli_run(["predict", "-i", "molecules.csv", "--model-paths", str(path), "--preds-path", "made.csv"])
    assert len((tmp_path / "made.csv").read_text().splitlines()) == 3


def chemprop_cli_run(arguments):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["chemprop", *arguments, "--num-workers", "0", "--accelerator", "cpu"])
        chemprop_cli()


def test_an_old_checkpoint_of_the_host_resumes_adopted(tmp_path):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, filename="old")
    options = {**QUIET, "enable_checkpointing": True}
    pl.Trainer(**options, max_epochs=2, callbacks=[saving]).fit(make(), loader())
    net = adopt(make(), **GIVEN)
    fitted = pl.Trainer(**QUIET, max_epochs=4)
    fitted.fit(net, loader(), ckpt_path=tmp_path / "old.ckpt", weights_only=False)
    assert fitted.current_epoch == 4
    assert all(math.isfinite(value) for value in net.sigma().values())


def test_the_callback_and_unadopt(tmp_path):
    """A project's own Trainer needs no line of code; what the host saves by itself has its shape."""
    net = make()
    adoption = AdoptLosses(GIVEN["tasks"], GIVEN["parts"], count=f"{PROGRAM}.labels", divisor=f"{PROGRAM}.all_labels")
    pl.Trainer(**QUIET, max_epochs=2, callbacks=[UncertaintyMonitor(table=False), adoption]).fit(net, loader())
    by_hand = adopt(make(), **GIVEN)
    pl.Trainer(**QUIET, max_epochs=2).fit(by_hand, loader())
    assert type(net).__name__ == "MPNN"
    assert net.sigma() == by_hand.sigma()
    models.save_model(tmp_path / "adopted.pt", net)
    assert type(unadopt(net)) is models.MPNN
    assert not isinstance(net, MultiTaskMixin)
    models.save_model(tmp_path / "model.pt", net)
    batch = next(iter(loader()))
    for name in ("adopted.pt", "model.pt"):
        assert torch.equal(models.load_model(tmp_path / name).eval()(batch.bmg), net.eval()(batch.bmg))


# -- two processes -----------------------------------------------------------------------------------------------------

ROWS = {"one": [slice(0, 64)], "two": [slice(0, 40), slice(40, 64)]}


def run(cells):
    """Each rank trains on its own molecules, of which one has more than the other, and other labels."""
    rank = torch.distributed.get_rank()
    net, monitor = adopt(make(), **GIVEN), UncertaintyMonitor(table=False)
    options = {"strategy": "ddp", "devices": RANKS, "use_distributed_sampler": False, "callbacks": [monitor]}
    rows = ROWS["two"][rank]
    pl.Trainer(**QUIET, max_epochs=5, **options).fit(net, loader(rows, batch_size=40))
    return {"state": {"state": net.state_dict(), "sigma": net.sigma()}}


@pytest.mark.cells(PROGRAM, "state")
def test_two_processes_train_as_one(found):
    net = adopt(make(), **GIVEN)
    pl.Trainer(**QUIET, max_epochs=5).fit(net, loader(ROWS["one"][0], batch_size=64))
    for rank in range(RANKS):
        other = found("state", rank=rank)
        assert other["sigma"] == pytest.approx(net.sigma(), rel=1e-4)
        for name, value in net.state_dict().items():
            assert torch.allclose(other["state"][name], value, rtol=1e-3, atol=1e-5), name
