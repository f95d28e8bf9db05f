"""What is written is what is predicted, each row at its place in the dataset."""

import lightning.pytorch
import pytest
import torch
from pytorch_lightning import LightningModule
from torch.utils.data import DataLoader, IterableDataset

from lightning_uncertainty import MultiTaskSteps, Task
from lightning_uncertainty.callbacks import PredictionWriter
from lightning_uncertainty.predictions import gather_predictions
from tests._nets import QUIET, Rows, trainer
from tests.callbacks._writing import ROWS, loader, net, rows


def same(gathered, module):
    assert gathered.indices.tolist() == list(range(ROWS))
    for task, prediction in module.predict_tasks(rows()["x"]).items():
        for part, expected in zip(gathered.predictions[task], prediction, strict=True):
            torch.testing.assert_close(part, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_a_batch_and_all_in_order(workers, tmp_path):
    module = net()
    table = DataLoader(Rows(rows()), batch_size=2, num_workers=workers)
    writer, run = PredictionWriter("out"), trainer()
    run.callbacks.append(writer)
    run.predict(module, table, return_predictions=False)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [*(f"batch-0-{batch:06d}-0.pt" for batch in range(6)), "done-0.json"]
    one = torch.load(tmp_path / "out/batch-0-000001-0.pt", weights_only=True)
    assert one["indices"].tolist() == [2, 3]
    assert one["predictions"]["kind"].keys() == {"mean", "aleatoric", "epistemic", "total"}
    same(gather_predictions("out"), module)
    assert writer.folder_of(run) == tmp_path / "out"


@pytest.mark.cells("tests.callbacks._writing", "{cell}")
@pytest.mark.parametrize("cell", ["dealt", "all"])
def test_rows_of_several_processes_are_put_in_order(cell, found):
    """By a sampler that deals them out, or where each process predicts all."""
    files = [path.name for path in (found.folder / cell).glob("batch-*")]
    assert {name.rpartition("-")[2] for name in files} == {"0.pt", "1.pt"}
    same(gather_predictions(found.folder / cell), net())


def test_samples_of_a_seed_are_the_same_in_every_run_and_others_in_every_batch():
    module = net(samples=20)
    for folder in ("one", "two"):
        trainer(callbacks=[PredictionWriter(folder)]).predict(module, loader(), return_predictions=False)
    one, two = (gather_predictions(folder).predictions["depth"] for folder in ("one", "two"))
    assert torch.equal(one.epistemic, two.epistemic)
    assert (one.epistemic > 0).all()
    twice = DataLoader(Rows({name: column[[0, 1, 0, 1]] for name, column in rows().items()}), batch_size=2)
    trainer(callbacks=[PredictionWriter("one")]).predict(module, twice, return_predictions=False)
    epistemic = gather_predictions("one").predictions["depth"].epistemic
    assert not torch.equal(epistemic[:2], epistemic[2:])
    expected = module.predict_tasks(rows()["x"][:2], samples=20, seed=2)["depth"].epistemic  # 1, and the batch
    torch.testing.assert_close(epistemic[2:], expected)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([{"x": row} for row in rows()["x"]])


@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices")
@pytest.mark.parametrize("kind", ["stream", "whole batches"])
def test_where_nobody_knows_the_places_one_process_keeps_the_order(kind):
    whole = [{"x": part} for part in rows()["x"].split(3)]
    batches = DataLoader(Stream(), batch_size=2) if kind == "stream" else DataLoader(whole, batch_size=None)
    module, run = net(), trainer(callbacks=[PredictionWriter("out")])
    run.predict(module, loader(), return_predictions=False)  # whose places are not those of the next
    run.predict(module, batches, return_predictions=False)
    same(gather_predictions("out"), module)


@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices")
def test_several_loaders_are_apart():
    module = net()
    run = trainer(callbacks=[PredictionWriter("out")])
    run.predict(module, [loader(), DataLoader(Stream(), batch_size=4)], return_predictions=False)
    for index in range(2):
        same(gather_predictions("out", dataloader=index), module)
    with pytest.raises(ValueError, match="there should be predictions of dataloader 2 in out: found none"):
        gather_predictions("out", dataloader=2)


def test_part_of_a_dataset_keeps_its_places_and_an_earlier_run_leaves_nothing():
    run = trainer(callbacks=[PredictionWriter("out")], limit_predict_batches=2)
    trainer(callbacks=[PredictionWriter("out")]).predict(net(), loader(), return_predictions=False)
    run.predict(net(), DataLoader(Rows(rows()), sampler=[7, 3, 5, 1, 0], batch_size=2), return_predictions=False)
    found = gather_predictions("out")
    assert found.indices.tolist() == [1, 3, 5, 7]
    torch.testing.assert_close(
        found.predictions["depth"].mean, net().predict_tasks(rows()["x"][[1, 3, 5, 7]])["depth"].mean
    )


def test_it_is_beside_the_logs_by_itself_and_works_for_the_other_package(tmp_path):
    class Other(MultiTaskSteps, lightning.pytorch.LightningModule):
        pass

    module = Other(torch.nn.Linear(4, 2), {"depth": Task("generic", head=torch.nn.Linear(2, 1))}, inputs="x")
    run = lightning.pytorch.Trainer(**QUIET, callbacks=[PredictionWriter()], default_root_dir=tmp_path)
    run.predict(module, loader(), return_predictions=False)
    assert gather_predictions(tmp_path / "predictions").indices.tolist() == list(range(ROWS))


def test_whatever_tensors_a_step_returns_are_gathered():
    class Own(LightningModule):
        def predict_step(self, batch, batch_idx):
            return [{"twice": 2 * batch["x"]}, (batch["x"].sum(1),)]

    trainer(callbacks=[PredictionWriter("out")]).predict(Own(), loader(), return_predictions=False)
    first, second = gather_predictions("out").predictions
    assert torch.equal(first["twice"], 2 * rows()["x"])
    torch.testing.assert_close(second[0], rows()["x"].sum(1))
