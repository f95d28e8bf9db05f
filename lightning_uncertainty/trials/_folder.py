"""What is kept of a fit, and the folder where it is kept."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

__all__ = ["Trial", "TrialFolder"]


@dataclass(frozen=True)
class Trial:
    """What is kept of one fit: numbers and names.

    Attributes:
        name: of the weighting.
        task: the only one that was trained; None for all.
        seed: of the fit.
        weighting: its `repr`.
        rows: for every validation what was logged, by log key, and the epoch.
        higher_is_better: by log key, of the metrics that the tasks own.
        step_time: median seconds of a training batch.
        peak_memory: bytes on a CUDA device at most; None elsewhere.
    """

    name: str
    task: str | None
    seed: int
    weighting: str
    rows: list[dict[str, float]]
    higher_is_better: Mapping[str, bool | None]
    step_time: float | None
    peak_memory: int | None

    def row(self, best_by: str | None = None) -> dict[str, float]:
        """Return the last row, or that at the best of a log key; a trial of one task goes by this task's loss.

        Raises:
            ValueError: it was never logged.
        """
        if best_by is None:
            return self.rows[-1]
        key = best_by if self.task is None else f"val/{self.task}/loss"
        rows = [row for row in self.rows if key in row]
        if not rows:
            raise ValueError(f"best_by should be a log key of every validation: found {', '.join(self.rows[-1])}")
        sign = -1 if self.higher_is_better.get(key) else 1
        return min(rows, key=lambda row: math.inf if math.isnan(row[key]) else sign * row[key])


class TrialFolder:
    """Trials of one setup on disk, each written at once when it is finished.

    Args:
        path: of the folder, which is made.
        setup: what all trials have in common, by name.

    Raises:
        ValueError: the folder holds trials of another setup.
    """

    def __init__(self, path: str | Path, setup: Mapping[str, str]) -> None:
        self.path = Path(path).resolve()
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / "setup.json"
        if not file.exists():
            _write(file, dict(setup))
        self._check(json.loads(file.read_text(encoding="utf-8")), setup)

    def find(self, name: str, task: str | None, seed: int, weighting: str) -> Trial | None:
        """Return a trial that was finished, None where there is none.

        Raises:
            ValueError: it had another weighting under this name.
        """
        file = self._file(name, task, seed)
        if not file.exists():
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
        trial = Trial(**found)
        self._check({f"weighting {name!r}": trial.weighting}, {f"weighting {name!r}": weighting})
        return trial

    def keep(self, trial: Trial) -> None:
        """Write a finished trial."""
        _write(self._file(trial.name, trial.task, trial.seed), asdict(trial))

    def scratch(self, name: str, task: str | None, seed: int) -> Path:
        """Return where a trial may write what it logs."""
        return self._file(name, task, seed).with_suffix("")

    def _file(self, name: str, task: str | None, seed: int) -> Path:
        parts = [name, *([] if task is None else [task]), f"seed {seed}"]
        return self.path / f"{', '.join(quote(part, safe=' ') for part in parts)}.json"

    def _check(self, held: Mapping[str, str], given: Mapping[str, str]) -> None:
        apart = [
            f"{name} was {held.get(name, 'not given')} and is {given.get(name, 'not given')}"
            for name in _union(held, given)
            if held.get(name) != given.get(name)
        ]
        if apart:
            raise ValueError(
                f"a folder should hold trials of one setup: found that in {self.path} {'; '.join(apart)}; name another "
                "folder, or delete this one"
            )


def _union(*parts: Iterable[str]) -> dict[str, None]:
    return dict.fromkeys(name for part in parts for name in part)


def _write(file: Path, content: Any) -> None:
    """Write a file that is there as a whole or not at all."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(partial, file)
