"""Fits that are killed and resumed, each in a process of its own, forked from one that has imported everything."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_uncertainty import UncertaintyMonitor
from tests._nets import trainer
from tests.trainer._resume import BATCHES, EPOCHS, VALIDATED, BetweenStepAndCheckpoint, Loader, Net, Rows, batch_of
from tests.trainer._weightings import WEIGHTINGS

PROCESSES = 1  # it forks
SAVED_EVERY, LOGGED_EVERY = 4, 3  # steps
PLACES = ("before backward", "before the step", "before the checkpoint", "in the checkpoint", "after the checkpoint")
OUTSIDE = "outside"


@dataclass(frozen=True)
class Case:
    """A fit, and where it is killed: batch and place, once or more."""

    kills: tuple[tuple[int, str], ...]
    weighting: str = "UncertaintyWeighting"
    accumulate: int = 1
    by_epoch: bool = False  # saved at the ends of epochs

    def __str__(self) -> str:
        where = " then ".join(f"{place} {batch}" for batch, place in self.kills)
        accumulate = f", accumulate {self.accumulate}" if self.accumulate > 1 else ""
        return f"{self.weighting}, {where}{accumulate}{', saved by epoch' if self.by_epoch else ''}"


def _cases() -> dict[str, Case]:
    fixed = [
        Case(((2, "before backward"),)),  # nothing is saved yet
        Case(((5, "before the checkpoint"),)),
        Case(((BATCHES - 1, "after the checkpoint"),)),  # an epoch's last batch
        Case(((14, "in the checkpoint"), (21, "before the step"))),
        Case(((16, "before the checkpoint"),), accumulate=2),  # no step in this batch
        Case(((20, "after the checkpoint"),), by_epoch=True),
    ]
    drawn = random.Random(20)
    batches = range(SAVED_EVERY, EPOCHS * BATCHES)
    at_random = [Case(((batch, drawn.choice(PLACES)),)) for batch in drawn.sample(batches, 5)]
    others = [Case(((drawn.choice(batches), drawn.choice(PLACES)),), name) for name in WEIGHTINGS]
    outside = [Case(((milliseconds, OUTSIDE),)) for milliseconds in drawn.sample(range(250), 3)]
    return {str(case): case for case in [*fixed, *at_random, *others[1:], *outside]}


CASES = _cases()


def fit(case: Case, kill: tuple[int, str] | None, folder: Path) -> dict[str, Any]:
    """Train to the end or to the kill, from the last checkpoint where there is one; return all that there is."""
    torch.manual_seed(0)
    net, rows, monitor = Net(case.weighting), Rows(), UncertaintyMonitor(table=False)
    saved = {"every_n_epochs": 1} if case.by_epoch else {"every_n_train_steps": SAVED_EVERY}
    callbacks = [
        ModelCheckpoint(folder, save_top_k=-1, save_last=True, **saved),
        monitor,
        LearningRateMonitor("step"),
        BetweenStepAndCheckpoint(),
    ]
    fitted = trainer(
        max_epochs=EPOCHS,
        accumulate_grad_batches=case.accumulate,
        log_every_n_steps=LOGGED_EVERY,
        callbacks=callbacks,
        logger=rows,
        enable_checkpointing=True,
        num_sanity_val_steps=0,
    )
    if kill:
        net.kill = _killer(fitted, *kill)
    fitted.fit(net, Loader(), DataLoader([batch_of(VALIDATED)], batch_size=None), ckpt_path="last")
    (scheduler,) = fitted.lr_scheduler_configs
    return {
        "module": net.state_dict(),
        "optimizer": fitted.optimizers[0].state_dict(),
        "scheduler": scheduler.scheduler.state_dict(),
        "logged": rows.rows,
        "history": monitor.history.rows,
        "evaluations": monitor.evaluations.rows,
        "resumed_at": net.resumed_at,
        "seen": net.seen,
        "steps": fitted.global_step,
        "batches": fitted.fit_loop.epoch_loop.total_batch_idx + 1,
    }


def _killer(fitted: Any, batch: int, place: str) -> Callable[[str], None]:
    """Return what kills this process there; from outside it is done by a parent, at the latest at the fit's end."""

    def kill(here: str) -> None:
        done = fitted.fit_loop.epoch_loop.total_batch_idx
        if place == OUTSIDE:
            time.sleep(0.002)
            if done == EPOCHS * BATCHES - 1:
                signal.pause()
        elif here == place and done >= batch:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


# -- processes ---------------------------------------------------------------------------------------------------------


def _fork(case: Case, kill: tuple[int, str] | None, folder: Path, out: Path) -> None:
    """Fit in a child; raise unless it ends as it should."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.save(fit(case, kill, folder), out)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if kill and kill[1] == OUTSIDE:
        deadline = time.monotonic() + 30
        while not (folder / "last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(kill[0] / 1000)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != (-signal.SIGKILL if kill else 0):
        raise RuntimeError(f"{case}, killed at {kill}: ended with {code}")


Ends = tuple[dict[str, Any], dict[str, Any]]


def run(cells: list[str]) -> dict[str, Ends]:
    """Return the ends of each case's resumed and of its uninterrupted fit."""
    warnings.simplefilter("ignore")  # Lightning's advice; ours would be repeated in every child
    torch.set_num_threads(1)
    return {name: _ends(name) for name in cells}


def _ends(name: str) -> Ends:
    case, folder = CASES[name], Path(name)
    folder.mkdir()
    whole = Path(f"{case.weighting}, accumulate {case.accumulate}, whole.pt")
    if not whole.exists():
        _fork(case, None, Path(f"{whole.stem}, checkpoints"), whole)
    for kill in case.kills:
        _fork(case, kill, folder, folder / "never.pt")
    _fork(case, None, folder, folder / "resumed.pt")
    return torch.load(folder / "resumed.pt"), torch.load(whole)
