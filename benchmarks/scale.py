"""How far it goes: a thousand tasks, a million steps under the monitor, ten thousand trials of a comparison.

What takes too long here is measured at smaller sizes, and the last line says what it comes to at the size in question,
if it goes on as it does between the two largest.
"""

from __future__ import annotations

import gc
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _measure import estimate, interleave, introduce, status, table
from lightning_step import Stopwatch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_uncertainty import MultiTaskMixin
from lightning_uncertainty.callbacks import UncertaintyMonitor
from lightning_uncertainty.trials import compare
from lightning_uncertainty.weightings import (
    AnalyticUncertaintyWeighting,
    FixedWeighting,
    UncertaintyWeighting,
    Weighting,
)

TASKS = (10, 100, 1000)
TASK_STEPS = 60
TASK_SECONDS = 120.0
STEPS = (20_000, 40_000, 60_000, 80_000, 100_000)
MANY_STEPS = 1_000_000
TRIALS = (100, 200, 400)
MANY_TRIALS = 10_000
READS = 5
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Many(MultiTaskMixin, LightningModule):
    """One linear layer, each of whose outputs is a task.

    Args:
        weighting: how the losses become one.
        tasks: how many.
    """

    def __init__(self, weighting: Weighting, tasks: int = 2) -> None:
        super().__init__()
        self.net = nn.Linear(4, tasks)
        self.names = [f"task_{number}" for number in range(tasks)]
        self.register_tasks(dict.fromkeys(self.names, "gaussian"), weighting=weighting)

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        losses = (self.net(batch[:, 1:]) - batch.sum(1, keepdim=True)).square().mean(0)  # the first column is noise
        return dict(zip(self.names, losses.unbind(), strict=True))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        return self.weigh(self.losses(batch), "train")

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.weigh(self.losses(batch), "val")

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameter_groups(lr=1e-3))


def batches(count: int) -> DataLoader[Tensor]:
    return DataLoader([torch.randn(8, 5)] * count, batch_size=None)


class Memory(Callback):
    """What the process holds after so many steps, in MiB."""

    def __init__(self) -> None:
        self.found: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in STEPS:
            gc.collect()
            self.found[trainer.global_step] = status("VmRSS") / 1024


def many_tasks() -> None:
    """Print what a step and a report take."""
    print("## Tasks\n")
    kinds: dict[str, Callable[[], Weighting]] = {
        "`UncertaintyWeighting`": UncertaintyWeighting,
        "`AnalyticUncertaintyWeighting`": AnalyticUncertaintyWeighting,
        "`FixedWeighting`": FixedWeighting,
    }
    settings = [(name, tasks) for name in kinds for tasks in TASKS]

    def fitted(name: str, tasks: int) -> tuple[Stopwatch, UncertaintyMonitor]:
        clock, monitor = Stopwatch(TASK_STEPS // 2, TASK_STEPS // 2), UncertaintyMonitor(table=False)
        trainer = Trainer(max_epochs=1, callbacks=[clock, monitor], log_every_n_steps=10, **QUIET)
        trainer.fit(Many(kinds[name](), tasks), batches(TASK_STEPS))
        return clock, monitor

    def milliseconds(name: str, tasks: int) -> float:
        return fitted(name, tasks)[0].microseconds / 1000

    samples = interleave({setting: partial(milliseconds, *setting) for setting in settings}, TASK_SECONDS)
    rows = []
    for name in kinds:
        _, monitor = fitted(name, TASKS[-1])
        with tempfile.TemporaryDirectory() as folder:
            begun = time.process_time()
            monitor.report(Path(folder) / "report.html")
            spent = time.process_time() - begun
            size = (Path(folder) / "report.html").stat().st_size / 2**20
        rows.append(
            [name, *(estimate(samples[name, tasks]).text(2) for tasks in TASKS), f"{spent:.1f} s, {size:.1f} MiB"]
        )
    print(f"Milliseconds of a step of the Trainer, the monitor every tenth; {len(samples[settings[0]])} rounds.\n")
    table(["", *(f"T = {tasks:,}" for tasks in TASKS), f"report of {TASKS[-1]:,}"], rows)


def many_steps() -> None:
    """Print what a process holds while the monitor watches."""
    print("## Steps\n")
    memory, monitor = Memory(), UncertaintyMonitor(table=False)
    trainer = Trainer(max_steps=STEPS[-1], callbacks=[monitor, memory], log_every_n_steps=5, **QUIET)
    trainer.fit(Many(UncertaintyWeighting(), 3), batches(1000))
    print(f"Three tasks, a row every 5 steps, of which {len(monitor.history.rows):,} are kept.\n")
    table(["steps", "MiB"], [[f"{steps:,}", f"{held:.1f}"] for steps, held in memory.found.items()])
    last, before = memory.found[STEPS[-1]], memory.found[STEPS[-2]]
    rate = (last - before) / (STEPS[-1] - STEPS[-2])
    print(f"{MANY_STEPS:,} steps: {last + rate * (MANY_STEPS - STEPS[-1]):.0f} MiB.\n")


def many_trials() -> None:
    """Print what it takes to read what a comparison has kept."""
    print("## Trials\n")
    trainer = {"max_epochs": 1, "accelerator": "cpu", "num_sanity_val_steps": 0}
    rows, read = [], []
    with tempfile.TemporaryDirectory() as folder:
        for count in TRIALS:
            options = {"seeds": range(count), "trainer": trainer, "baseline": None, "progress_bar": False}
            run = partial(compare, Many, (batches(1), batches(1)), {"equal": FixedWeighting}, folder, **options)
            run()
            spent = []
            for _ in range(READS):
                begun = time.process_time()
                str(run())
                spent.append(time.process_time() - begun)
            read.append(estimate(spent))
            rows.append([f"{count:,}", read[-1].text(2)])
    print(
        f"Fits of one step; a later call finds all of them, and makes the table; {READS} calls, of which the range.\n"
    )
    table(["trials", "s to read"], rows)
    rate = (read[-1].median - read[-2].median) / (TRIALS[-1] - TRIALS[-2])
    print(f"{MANY_TRIALS:,} trials: {read[-1].median + rate * (MANY_TRIALS - TRIALS[-1]):.0f} s.\n")


def main() -> None:
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    introduce("Scale", ["torch", "pytorch-lightning"], "CPU time, resident memory")
    many_tasks()
    many_steps()
    many_trials()


if __name__ == "__main__":
    main()
