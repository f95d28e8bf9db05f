"""Finds a run on disk and reads it, whichever logger wrote it."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lightning_uncertainty.dashboards.report._curves import Columns, columns_of
from lightning_uncertainty.dashboards.report._run import Run
from lightning_uncertainty.dashboards.report._wandb_file import files_of_run, read_wandb

__all__ = ["read_run"]

_CSV, _EVENTS, _WANDB = "metrics.csv", "events.out.tfevents.*", "*.wandb"
_KNOWN = f"CSVLogger ({_CSV}), TensorBoardLogger ({_EVENTS}) or offline wandb (run-{_WANDB})"
_EMPTY = b"-nan"  # stands for an empty cell: a logged NaN has no sign
_NAMED = 3  # runs that an error lists

_Rows = Iterable[tuple[int, dict[str, float]]]


def read_run(path: str | Path) -> Run:
    """Read a run of CSVLogger, of TensorBoardLogger, or of wandb offline; one that is still training as far as it is.

    Args:
        path: the run's folder, its file (`metrics.csv`, `events.out.tfevents.*`, `run-*.wandb`), or a folder above this
            run and no other.

    Of a wandb run that was resumed, in a folder for each process, any of these is the whole run.

    Returns:
        The run, with one row a step; values that are no numbers are left out.

    Raises:
        FileNotFoundError: there is nothing at this path.
        ValueError: it holds no run, several runs, one without rows or one that `UncertaintyMonitor` did not log.
        ModuleNotFoundError: the run is TensorBoard's, which is not installed.
    """
    source = _find(Path(path))
    rows: _Rows
    if source.suffix == ".wandb":
        title, rows, config = read_wandb(source)
    elif source.suffix == ".csv":
        title, config = _title(source.parent), _read_yaml(source.parent)
        columns = _read_columns(source)
        if columns is not None:
            return Run(title, columns, config)
        rows = _read_csv(source)
    else:
        folder = source if source.is_dir() else source.parent
        title, rows, config = _title(folder), _read_events(source), _read_yaml(folder)
    merged: dict[int, dict[str, float]] = {}
    for step, values in rows:
        merged.setdefault(step, {}).update(values)
    return Run(title, [{"step": step, **merged[step]} for step in sorted(merged)], config)


def _find(path: Path) -> Path:
    """Return what to read: a file, or the folder of event files."""
    if not path.exists():
        raise FileNotFoundError(f"there should be a run at {path}: found nothing; give the folder of a run of {_KNOWN}")
    if path.is_file():
        if path.suffix in (".csv", ".wandb") or fnmatch(path.name, _EVENTS):
            return path
        raise ValueError(f"a run should be of {_KNOWN}: found the file {path}; give the run's folder")
    runs = _runs(path.glob) or _runs(path.rglob)  # what lies in a run's folder belongs to it
    begun = sorted(path.parent for path in path.rglob("hparams.yaml"))
    if not runs and begun:
        raise ValueError(f"a run should have rows: found none in {begun[0]}, whose fit has logged nothing yet")
    if not runs:
        raise ValueError(f"a run should be of {_KNOWN}: found none in {path} or below it; give the run's folder")
    if len(runs) > 1:
        named = ", ".join(map(str, sorted(runs)[:_NAMED])) + (", ..." if len(runs) > _NAMED else "")
        raise ValueError(f"a folder should hold one run: found {len(runs)} in {path}: {named}; give one of them")
    return next(iter(runs.values()))


def _runs(glob: Any) -> dict[Path, Path]:
    """Return what to read, by what to call the run; of two loggers in one folder CSVLogger, which keeps all digits."""
    runs = {file.parent: file.parent for file in glob(_EVENTS)}
    runs |= {file.parent: file for file in glob(_CSV)}
    return runs | {files_of_run(file)[0]: file for file in glob(_WANDB)}


def _title(folder: Path) -> str:
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name.startswith("version_") else folder.name


def _read_columns(path: Path) -> Columns | None:
    """Read a file of numbers and empty cells at once; None where there is anything else, or no column of steps."""
    head, _, body = path.read_bytes().partition(b"\n")
    body = body[: body.rfind(b"\n") + 1]  # the last line may still be written
    names = head.decode("utf-8", "replace").rstrip("\r").split(",")
    if not body or b'"' in head or "step" not in names or len(set(names)) < len(names):
        return None
    for has_empty in (False, True):  # most files have no empty cell, and looking for one is slow
        try:
            lines: Any = BytesIO(_filled(body) if has_empty else body)
            table: Any = np.loadtxt(lines, delimiter=",", ndmin=2, comments=None)
        except ValueError:
            continue
        if table.shape[1] == len(names):
            break
    else:
        return None
    empty = np.isnan(table) & np.signbit(table)
    return Columns(dict(columns_of(table, names, ~empty if empty.any() else None)))


def _filled(body: bytes) -> bytes:
    for empty in (b",,", b",,", b",\r\n", b",\n", b"\n,"):  # twice: neighbours share a comma
        body = body.replace(empty, empty[:1] + _EMPTY + empty[1:])
    return _EMPTY + body if body.startswith(b",") else body


def _read_csv(path: Path) -> _Rows:
    """Yield the rows; CSVLogger leaves cells empty, and a last line without an end is still being written."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        lines = (line for line in file if line.endswith("\n"))
        for cells in csv.DictReader(lines):
            values = {key: number for key, cell in cells.items() if (number := _number(cell)) is not None}
            step = values.pop("step", None)
            if step is not None:
                yield int(step), values


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _read_events(path: Path) -> _Rows:
    """Yield every scalar, but Lightning's placeholder and what the monitor adds for TensorBoard's bands alone."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading event files needs tensorboard: pip install 'lightning-uncertainty[demo]'"
        ) from error
    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    for tag in events.Tags()["scalars"]:
        if tag != "hp_metric" and "sigma_optimum/" not in tag:
            for event in events.Scalars(tag):
                yield event.step, {tag: event.value}


class _Loader(yaml.SafeLoader):
    """Reads Python's own objects, which Lightning may write, as the plain values they are made of."""


def _plain(loader: _Loader, suffix: str, node: Any) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return node.value or suffix.partition(":")[2]


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)


def _read_yaml(folder: Path) -> dict[str, Any]:
    """Return the hyper-parameters; none where they are not written, or not to the end."""
    path = folder / "hparams.yaml"
    if not path.is_file():
        return {}
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError:
        return {}
    return {str(key): value for key, value in config.items()} if isinstance(config, dict) else {}
