"""One process of a comparison: `python -m tests.trials._worker FOLDER [KEY=VALUE ...]`.

Every fit that begins is a line of FOLDER/begun.txt and every one that ends one of FOLDER/ended.txt: weighting, seed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader

from lightning_uncertainty import AnalyticUncertaintyWeighting, FixedWeighting, UncertaintyWeighting
from lightning_uncertainty.trials import compare
from tests._nets import Owning, dicts

WEIGHTINGS = {"analytic": AnalyticUncertaintyWeighting, "equal": FixedWeighting, "uncertainty": UncertaintyWeighting}
SEEDS = (0, 1, 2)


def note(file: Path, text: str) -> None:
    with file.open("a") as stream:  # of a line at a time, which is atomic
        stream.write(f"{text}\n")


class Noting(Callback):
    """Notes each fit, and waits in the middle of the first where `hang` is given, which is no setup of trials."""

    def __init__(self, folder: Path, hang: float) -> None:
        self.folder, self._hang = folder, hang

    def on_train_epoch_end(self, trainer, pl_module):
        name = type(pl_module.task_weighting).__name__
        seed = int(os.environ["PL_GLOBAL_SEED"])
        if trainer.current_epoch == 0:
            note(self.folder / "begun.txt", f"{name} {seed} {os.getpid()}")
            time.sleep(self._hang or 0.1)
        else:
            note(self.folder / "ended.txt", f"{name} {seed} {os.getpid()}")


def loader(workers: int) -> DataLoader:
    rows = dicts(16).dataset
    return DataLoader(rows, batch_size=8, num_workers=workers, persistent_workers=bool(workers))


def main(folder: Path, hang: float = 0.0, workers: float = 0) -> None:
    trainer = {"max_epochs": 2, "accelerator": "cpu", "callbacks": Noting(folder, hang)}
    data = loader(int(workers)), loader(0)
    options = {"seeds": SEEDS, "baseline": None, "progress_bar": False, "trainer": trainer}
    found = compare(Owning, data, WEIGHTINGS, folder / "trials", **options)
    print(f"{len(found.trials)} trials\n{found}", flush=True)


if __name__ == "__main__":
    given = dict(pair.split("=") for pair in sys.argv[2:])
    main(Path(sys.argv[1]), **{name: float(value) for name, value in given.items()})
