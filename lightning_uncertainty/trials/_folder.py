"""The folder where trials are kept, and claimed by who trains them."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout

from lightning_uncertainty.trials._plan import Plan
from lightning_uncertainty.trials._setup import differences
from lightning_uncertainty.trials._trial import Trial

__all__ = ["TrialFolder"]


class TrialFolder:
    """Trials of one setup on disk, each written at once when it is over.

    A trial is a JSON file. Its name is a hash of the trial's, which may be of any length; the file says what it is.
    Who trains it holds the lock beside it as long as the fit takes. The kernel frees the lock of a process that dies.

    Args:
        path: of the folder, which is made.
        setup: what all trials have in common, by name.
        others: what may stand there in its stead, asked for where something else does.

    Raises:
        ValueError: the folder holds trials of another setup.
    """

    def __init__(
        self, path: str | Path, setup: Mapping[str, str], others: Callable[[], Iterable[Mapping[str, str]]] = tuple
    ) -> None:
        self.path = Path(path).resolve()
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / "setup.json"
        with self.alone("setup"):  # of two that come at once one writes, and the other compares
            if not file.exists():
                _write(file, dict(setup))
        held = json.loads(file.read_text(encoding="utf-8"))
        if held != setup and held not in others():
            self._check(held, setup)
        self._named = {name for name in os.listdir(self.path) if name.endswith(".json") and ", seed " in name}

    def find(self, plan: Plan) -> Trial | None:
        """Return a trial that is over, None where there is none.

        Raises:
            ValueError: it had another weighting under this name.
        """
        for file in self._files(plan):
            try:
                trial = Trial.of(json.loads(file.read_text(encoding="utf-8")))
            except FileNotFoundError:
                continue
            except (ValueError, TypeError, AttributeError) as error:  # as a machine that lost its power may leave
                warnings.warn(
                    f"a trial should be a JSON object: found {error} in {file}; it is fitted anew", stacklevel=2
                )
                continue
            self._check({f"weighting {plan.name!r}": trial.weighting}, {f"weighting {plan.name!r}": plan.weighting})
            return trial
        return None

    def keep(self, plan: Plan, trial: Trial) -> None:
        """Write a trial that is over.

        Raises:
            OSError: there is no room, or another reason not to; what was there before stays.
        """
        _write(self._file(plan), asdict(trial))

    @contextmanager
    def claim(self, plan: Plan) -> Iterator[bool]:
        """Hold a trial, and say whether it is held: it is not where another process does."""
        lock = FileLock(self._file(plan).with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def alone(self, what: str) -> FileLock:
        """Return a lock for what one process at a time may do."""
        return FileLock(self.path / f"{what}.lock")

    def scratch(self, plan: Plan) -> Path:
        """Return where a trial may write what it logs."""
        return self._file(plan).with_suffix("")

    def _file(self, plan: Plan) -> Path:
        digest = hashlib.sha256(json.dumps(plan.key).encode()).hexdigest()
        return self.path / f"{digest[:20]}.json"

    def _files(self, plan: Plan) -> Iterator[Path]:
        """Yield where a trial may be: its file, and that of folders before names were hashes."""
        yield self._file(plan)
        parts = [plan.name, *([] if plan.task is None else [plan.task]), f"seed {plan.seed}"]
        named = f"{', '.join(quote(part, safe=' ') for part in parts)}.json"
        if named in self._named and not plan.settings:
            yield self.path / named

    def _check(self, held: Mapping[str, str], given: Mapping[str, str]) -> None:
        if apart := differences(held, given):
            raise ValueError(
                f"a folder should hold trials of one setup: found that in {self.path} {apart}; name another folder, or "
                "delete this one"
            )


def _write(file: Path, content: Any) -> None:
    """Write a file that is there as a whole or not at all."""
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(content, indent=1))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
