"""Files of predictions that cannot be put in order say so."""

import pytest
import torch

from lightning_uncertainty.predictions import Prediction, gather_predictions
from lightning_uncertainty.predictions.written import close_folder, open_folder, write_batch, write_gathered


def written(path, *batches, ranks=1, done=True):
    """Write batches, `(predictions, indices)`, dealt out among ranks."""
    open_folder(path)
    for number, (predictions, indices) in enumerate(batches):
        write_batch(path, predictions, indices, dataloader=0, batch=number // ranks, rank=number % ranks)
    for rank in range(ranks):
        if done:
            close_folder(path, len(batches[rank::ranks]), rank=rank, processes=ranks)
    return path


def test_rows_that_came_twice_are_there_once(tmp_path):
    folder = written(tmp_path, (torch.tensor([1.0, 2.0]), [1, 2]), (torch.tensor([0.0, 1.0]), [0, 1]), ranks=2)
    found = gather_predictions(folder)
    assert found.indices.tolist() == found.predictions.long().tolist() == [0, 1, 2]


@pytest.mark.parametrize("rows", [([4, 1, 0], [0, 3, 4]), ([0, 2], [2, 3]), ([5, 5, 0],)])
def test_rows_that_came_in_place_of_others_are_told(rows, tmp_path):
    folder = written(tmp_path, *((torch.tensor(own).float(), own) for own in rows), ranks=len(rows))
    with pytest.warns(UserWarning, match=r"that \d of rows 0 to \d came again and \d not at all"):
        gather_predictions(folder)


@pytest.mark.parametrize("rows", [([5, 3, 1],), ([1, 3], [5, 7]), ([1, 3], [1, 3])])
def test_part_of_a_dataset_is_no_loss(rows, tmp_path):
    found = gather_predictions(written(tmp_path, *((torch.tensor(own), own) for own in rows), ranks=len(rows)))
    assert found.indices.tolist() == found.predictions.tolist() == sorted({row for own in rows for row in own})


def test_more_than_nine_processes_and_a_million_batches_are_sorted_as_numbers(tmp_path):
    open_folder(tmp_path)
    for batch in (999_999, 1_000_000):
        rows = torch.full((2,), float(batch))
        write_batch(tmp_path, rows, None, dataloader=0, batch=batch, rank=0)
    close_folder(tmp_path, 2, rank=0, processes=1)
    assert gather_predictions(tmp_path).predictions.tolist() == [999_999.0] * 2 + [1_000_000.0] * 2


def test_one_file_holds_dicts_of_tensors_alone(tmp_path):
    depth = Prediction(*torch.arange(8.0).reshape(4, 2))
    write_gathered(written(tmp_path / "out", ({"depth": depth}, [0, 1])), tmp_path / "all.pt")
    loaded = torch.load(tmp_path / "all.pt", weights_only=True)
    assert loaded["indices"].tolist() == [0, 1]
    assert loaded["predictions"]["depth"]["total"].tolist() == [6.0, 7.0]
    assert gather_predictions(tmp_path / "out").predictions["depth"].total.tolist() == [6.0, 7.0]


def test_views_are_written_without_what_they_are_views_of(tmp_path):
    written(tmp_path, (torch.zeros(1_000_000)[:2], [0, 1]))
    assert (tmp_path / "batch-0-000000-0.pt").stat().st_size < 10_000


ROW = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "there should be predictions of dataloader 0 in .*: found none; predict with"),
        ([(ROW, [0, 1])], {"done": False}, "found that 0 of all processes have ended"),
        ([(ROW, None), (ROW, None)], {"ranks": 2}, "several processes should have the places of their rows"),
        (
            [(ROW, [0, 1]), (torch.zeros(2, 4), [2, 3])],
            {},
            r"found \[2, 4\] under no name for 2 rows in batch-0-000001",
        ),
        ([({"nodes": torch.zeros(5, 3)}, [0, 1])], {}, r"found \[5, 3\] under nodes for 2 rows"),
        ([({"names": "ab"}, [0, 1])], {}, "found str under names; read the files one by one"),
        ([([torch.tensor(1.0)], [0, 1])], {}, "found Tensor under 0; read the files one by one"),
    ],
)
def test_what_cannot_be_put_in_order_says_so(batches, options, message, tmp_path):
    written(tmp_path, *batches, **options)
    with pytest.raises(ValueError, match=message):
        gather_predictions(tmp_path)


def test_a_process_or_a_file_that_is_missing_is_told(tmp_path):
    folder = written(tmp_path, (ROW, [0, 1]), (ROW, [2, 3]), ranks=2)
    (folder / "done-1.json").unlink()
    with pytest.raises(ValueError, match="found that 1 of 2 processes have ended"):
        gather_predictions(folder)
    written(tmp_path, (ROW, [0, 1]), (ROW, [2, 3]))
    (folder / "batch-0-000000-0.pt").unlink()
    with pytest.raises(ValueError, match="or that files are missing"):
        gather_predictions(folder)
