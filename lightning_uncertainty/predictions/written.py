"""Predictions as files, one a batch, and in the order of the dataset."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_uncertainty.likelihoods import Prediction

__all__ = ["Gathered", "close_folder", "gather_predictions", "open_folder", "write_batch", "write_gathered"]


class Gathered(NamedTuple):
    """Predictions in the order of the dataset.

    Attributes:
        indices: of the rows in the dataset `[N]`; those of a whole dataset are 0, 1, 2 ...
        predictions: what `predict_step` returned, as a `Prediction` of every task, with these rows.
    """

    indices: Tensor
    predictions: Any


def open_folder(folder: Path) -> None:
    """Make a folder for predictions, without those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob("batch-*-*-*.pt"), *folder.glob("done-*.json")):
        stale.unlink()


def write_batch(
    folder: Path, predictions: Any, indices: Sequence[int] | None, *, dataloader: int, batch: int, rank: int
) -> None:
    """Write what is predicted of a batch, and the places of its rows in the dataset, for `torch.load`.

    Args:
        folder: that is open.
        predictions: tensors, in dicts, lists and tuples; those of `predict_tasks` as dicts by field.
        indices: places of the rows; None where nobody knows.
        dataloader: of which of several loaders the batch is.
        batch: its number in this process.
        rank: of the process.
    """
    path = folder / f"batch-{dataloader}-{batch:06d}-{rank}.pt"
    places = None if indices is None else torch.as_tensor(indices)
    part = path.with_suffix(".part")
    torch.save({"indices": places, "predictions": _plain(predictions)}, part)
    part.replace(path)  # a file is whole or is not there


def close_folder(folder: Path, batches: int, *, rank: int, processes: int) -> None:
    """Note that a process has written all its batches."""
    (folder / f"done-{rank}.json").write_text(json.dumps({"batches": batches, "processes": processes}))


def gather_predictions(folder: str | Path, *, dataloader: int = 0) -> Gathered:
    """Return what a `PredictionWriter` has written, of all processes, in the order of the dataset.

    A row that was predicted more than once, as by processes that share a model, is there once; a warning tells where
    others were left out for it, as by processes that shuffle each by itself. Memory is that of the result and one
    batch.

    Args:
        folder: of the files.
        dataloader: which of several loaders.

    Raises:
        ValueError: the folder holds no predictions of this loader or not all, nothing tells the order, or predictions
            are not tensors with a row for each row of their batch, all of one shape.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> open_folder(folder)
        >>> for rank, rows in enumerate(([0, 2], [1, 3])):  # as DDP deals them out
        ...     mean = torch.tensor(rows).float()
        ...     write_batch(folder, {"depth": mean}, rows, dataloader=0, batch=0, rank=rank)
        ...     close_folder(folder, 1, rank=rank, processes=2)
        >>> gather_predictions(folder)
        Gathered(indices=tensor([0, 1, 2, 3]), predictions={'depth': tensor([0., 1., 2., 3.])})
    """
    folder = Path(folder)
    paths = _paths(folder, dataloader)
    places = _places(paths)
    indices, counts = torch.unique(torch.cat(places), return_counts=True)  # sorted
    _warn_of_lost_rows(indices, counts)
    gathered: dict[str, Tensor] = {}
    tree = None
    for path, own in zip(paths, places, strict=True):
        tree = _load(path)["predictions"]
        at = torch.searchsorted(indices, own)
        for name, leaf in _leaves(tree):
            if len(leaf) != len(own) or (name in gathered and gathered[name].shape[1:] != leaf.shape[1:]):
                raise ValueError(
                    "predictions should have a row for each row of their batch, of one shape in all batches: found "
                    f"{list(leaf.shape)} under {name or 'no name'} for {len(own)} rows in {path.name}; read the files "
                    "one by one, with torch.load"
                )
            if name not in gathered:
                gathered[name] = leaf.new_empty(len(indices), *leaf.shape[1:])
            gathered[name][at] = leaf
    return Gathered(indices, _rebuilt(tree, gathered))


def write_gathered(folder: str | Path, out: str | Path, *, dataloader: int = 0) -> None:
    """Write what `gather_predictions` returns into one file, as dicts of tensors alone, for `torch.load`."""
    torch.save(_plain(gather_predictions(folder, dataloader=dataloader)), out)


def _paths(folder: Path, dataloader: int) -> list[Path]:
    """Return the files of a loader, by batch and then by rank, all of which are there."""
    paths = sorted(
        folder.glob(f"batch-{dataloader}-*-*.pt"), key=lambda path: [int(n) for n in path.stem.split("-")[1:]]
    )
    if not paths:
        raise ValueError(
            f"there should be predictions of dataloader {dataloader} in {folder}: found none; predict with "
            "callbacks=[PredictionWriter(folder)], or by the command predict"
        )
    done = {path.stem.split("-")[1]: json.loads(path.read_text()) for path in folder.glob("done-*.json")}
    processes = next(iter(done.values()))["processes"] if done else None
    written = {rank: len([*folder.glob(f"batch-*-*-{rank}.pt")]) for rank in done}
    if len(done) != processes or any(note["batches"] != written[rank] for rank, note in done.items()):
        raise ValueError(
            f"predictions should be whole: found that {len(done)} of {processes or 'all'} processes have ended in "
            f"{folder}, or that files are missing; wait for them, copy the files of all machines there, or predict anew"
        )
    return paths


def _places(paths: list[Path]) -> list[Tensor]:
    """Return the places of the rows of every file; where nobody noted them, one after the other."""
    places = [_load(path)["indices"] for path in paths]
    if all(one is not None for one in places):
        return places
    if len({path.stem.rpartition("-")[2] for path in paths}) > 1:
        raise ValueError(
            "predictions of several processes should have the places of their rows in the dataset: found some without, "
            "as of an IterableDataset or a DataLoader with batch_size=None; predict in one process"
        )
    rows = [next((len(leaf) for _, leaf in _leaves(_load(path)["predictions"])), 0) for path in paths]
    return list(torch.split(torch.arange(sum(rows)), rows))


def _warn_of_lost_rows(indices: Tensor, counts: Tensor) -> None:
    """Warn where some rows came more often than others, and others between them not at all."""
    lost = int(indices[-1]) + 1 - len(indices) if len(indices) else 0
    if lost and (again := int((counts > counts.min()).sum())):
        warnings.warn(
            f"predictions should be of every row as often as of any other: found that {again} of rows 0 to "
            f"{int(indices[-1])} came again and {lost} not at all, as where each of several processes shuffles by "
            "itself; predict with a DataLoader that does not shuffle, or after seed_everything, in all processes alike",
            stacklevel=3,
        )


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _plain(tree: Any) -> Any:
    """Return a tree of tensors on the CPU, with dicts by field in place of named tuples, which need their class."""
    if isinstance(tree, Tensor):
        return tree.detach().cpu().clone()  # of a view, its own part alone
    if isinstance(tree, dict):
        return {name: _plain(part) for name, part in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_asdict"):
        return _plain(tree._asdict())
    return [_plain(part) for part in tree] if isinstance(tree, list | tuple) else tree


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor) and tree.dim():
        yield name, tree
    elif isinstance(tree, dict | list):
        for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(part, f"{name}/{key}" if name else str(key))
    else:
        raise ValueError(
            "predictions should be tensors with a row for each row of their batch, in dicts, lists and tuples: found "
            f"{type(tree).__name__} under {name or 'no name'}; read the files one by one, with torch.load"
        )


def _rebuilt(tree: Any, gathered: dict[str, Tensor], name: str = "") -> Any:
    if isinstance(tree, Tensor):
        return gathered[name]
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    parts = {key: _rebuilt(part, gathered, f"{name}/{key}" if name else str(key)) for key, part in pairs}
    if tuple(parts) == Prediction._fields:
        return Prediction(*parts.values())
    return parts if isinstance(tree, dict) else list(parts.values())
