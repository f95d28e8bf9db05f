"""Streets that are drawn once, and kept."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from lightning_uncertainty.examples.streets import draw_street

__all__ = ["Streets", "cache_folder", "drawn_within"]

VERSION = 1  # what is drawn otherwise is kept apart
FIRST = {"train": 0, "val": 1_000_000, "test": 2_000_000}  # seeds
FOCAL_TIMES_BASELINE = 62.0  # pixels times metres: that of Cityscapes in pictures 256 pixels wide
PARTS: dict[str, tuple[tuple[int, ...], Any]] = {
    "image": ((3,), np.uint8),
    "label": ((), np.uint8),
    "instance": ((), np.uint8),
    "depth": ((), np.float32),
}


def cache_folder() -> Path:
    """Return where streets are kept: LIGHTNING_UNCERTAINTY_CACHE, or a folder in the cache of the user."""
    if given := os.environ.get("LIGHTNING_UNCERTAINTY_CACHE"):
        return Path(given).expanduser()
    of_user = {"win32": os.environ.get("LOCALAPPDATA") or "~/AppData/Local", "darwin": "~/Library/Caches"}
    cache = of_user.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "lightning-uncertainty"


def drawn_within(root: Path) -> Path:
    """Return the folder in which streets are, where any were drawn."""
    return root / f"streets-{VERSION}"


class Streets(Sequence["dict[str, np.ndarray[Any, Any]]"]):
    """Streets of a split as raw scenes; see `_scene_folders.py`.

    Those that are not there are drawn first. Another process that wants the same waits; what was not finished, or was
    damaged since, is drawn anew.

    Args:
        root: folder that keeps them.
        split: "train", "val" or "test": decides the seeds.
        count: how many.
        size: height and width.
        progress_bar: whether to show one while they are drawn.

    Raises:
        ValueError: there would be none.
        OSError: they cannot be written there.
    """

    def __init__(self, root: Path, split: str, count: int, size: tuple[int, int], *, progress_bar: bool = True) -> None:
        height, width = size
        if min(count, height, width) < 1:
            raise ValueError(
                f"streets should be one or more in each split, of one pixel or more: found {count} for {split}, "
                f"{height} x {width}; give other numbers"
            )
        self.folder = drawn_within(root) / f"{split}-{count}-{height}x{width}"
        if self._is_whole(count, size):
            return
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder.with_name(f"{self.folder.name}.lock")):
                if not self._is_whole(count, size):
                    self._draw(range(FIRST[split], FIRST[split] + count), size, progress_bar)
        except OSError as error:
            raise OSError(
                f"streets should be written once, where there is room for them: found that {root} does not take them "
                f"({error}); name another folder with root, or LIGHTNING_UNCERTAINTY_CACHE"
            ) from error

    @cached_property
    def parts(self) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays, which are read where they lie."""
        return self._opened()

    def _opened(self) -> dict[str, np.ndarray[Any, Any]]:
        return {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in PARTS}

    def _is_whole(self, count: int, size: tuple[int, int]) -> bool:
        """Whether all arrays are there as they were drawn, as far as their heads and lengths tell."""
        try:
            found = self._opened()
        except (OSError, ValueError, EOFError):
            return False
        wanted = {name: ((count, *size, *more), np.dtype(kind)) for name, (more, kind) in PARTS.items()}
        return {name: (part.shape, part.dtype) for name, part in found.items()} == wanted

    def _draw(self, seeds: range, size: tuple[int, int], progress_bar: bool) -> None:
        unfinished = self.folder.with_name(f"unfinished-{self.folder.name}")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
        unfinished.mkdir()
        try:
            parts = {name: np.empty((len(seeds), *size, *more), kind) for name, (more, kind) in PARTS.items()}
            title = f"Drawing {len(seeds)} streets, once"
            for index, seed in enumerate(tqdm(seeds, title, disable=not progress_bar)):
                for name, part in draw_street(seed, *size)._asdict().items():
                    parts[name][index] = part
            for name, part in parts.items():
                np.save(unfinished / f"{name}.npy", part)
            shutil.rmtree(self.folder, ignore_errors=True)  # what is damaged
            unfinished.rename(self.folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # workers open the arrays themselves

    def __len__(self) -> int:
        return len(self.parts["image"])

    def __getitem__(self, index: Any) -> Any:
        found = {name: np.array(part[index]) for name, part in self.parts.items()}
        depth = found["depth"]
        across = np.float32(FOCAL_TIMES_BASELINE * depth.shape[1] / 256)
        disparity = across / np.where(depth > 0, depth, np.float32(np.nan))
        return {"image": found["image"], "semantics": found["label"], "ids": found["instance"], "disparity": disparity}
