"""Fits that are killed and resumed, each in a process of its own, forked from one that has imported everything."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader

from lightning_uncertainty import MultiTaskMixin, Task, UncertaintyMonitor
from tests._nets import trainer
from tests.trainer._weightings import WEIGHTINGS

BATCHES, EPOCHS = 8, 3
LATE = 14  # the first batch with labels of `late`
VALIDATED = 1002  # the batch of validation, which has all labels
SAVED_EVERY, LOGGED_EVERY = 4, 3  # steps
PLACES = ("before backward", "before the step", "before the checkpoint", "in the checkpoint", "after the checkpoint")
OUTSIDE = "outside"


@dataclass(frozen=True)
class Case:
    """A fit, and where it is killed: batch and place, once or more."""

    kills: tuple[tuple[int, str], ...]
    weighting: str = "UncertaintyWeighting"
    accumulate: int = 1

    def __str__(self) -> str:
        where = " then ".join(f"{place} {batch}" for batch, place in self.kills)
        return f"{self.weighting}, {where}" + (f", accumulate {self.accumulate}" if self.accumulate > 1 else "")


def _cases() -> dict[str, Case]:
    fixed = [
        Case(((2, "before backward"),)),  # nothing is saved yet
        Case(((5, "before the checkpoint"),)),
        Case(((BATCHES - 1, "after the checkpoint"),)),  # an epoch's last batch
        Case(((14, "in the checkpoint"), (21, "before the step"))),
        Case(((16, "before the checkpoint"),), accumulate=2),  # no step in this batch
    ]
    drawn = random.Random(20)
    batches = range(SAVED_EVERY, EPOCHS * BATCHES)
    at_random = [Case(((batch, drawn.choice(PLACES)),)) for batch in drawn.sample(batches, 5)]
    others = [Case(((drawn.choice(batches), drawn.choice(PLACES)),), name) for name in WEIGHTINGS]
    outside = [Case(((milliseconds, OUTSIDE),)) for milliseconds in drawn.sample(range(250), 3)]
    return {str(case): case for case in [*fixed, *at_random, *others[1:], *outside]}


CASES = _cases()


# -- what is trained ---------------------------------------------------------------------------------------------------


def batch_of(step: int) -> dict[str, torch.Tensor]:
    """Eight rows; `kind` has no labels in every third batch, `late` none in the first ones."""
    rng = torch.Generator().manual_seed(step)
    x = torch.randn(8, 4, generator=rng)
    depth, late = 3 * x[:, 0] + torch.randn(8, generator=rng), x[:, 1:2].exp()
    kind = x[:, :3].argmax(1)
    depth[::3] = torch.nan
    if step % 3 == 1:
        kind[:] = -100
    if step < LATE:
        late[:] = torch.nan
    return {"x": x, "depth": depth, "kind": kind, "late": late}


class Loader:
    """Keeps its position: Lightning saves what has `state_dict`."""

    def __init__(self) -> None:
        self.epoch, self.batch = 0, 0  # the next one

    def __len__(self) -> int:  # of a whole epoch, wherever we are; without it Lightning fetches a batch ahead
        return BATCHES

    def __iter__(self):
        if self.batch == BATCHES:
            self.epoch, self.batch = self.epoch + 1, 0
        while self.batch < BATCHES:
            self.batch += 1
            yield batch_of(self.epoch * BATCHES + self.batch - 1)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]


class Net(MultiTaskMixin, LightningModule):
    """Three tasks; at given places of a fit it calls `kill`."""

    def __init__(self, weighting: str) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        self.kill: Callable[[str], None] = lambda place: None
        self.resumed_at = 0
        self.seen: list[dict[str, float]] = []  # losses of every batch since
        tasks = {
            "depth": Task("gaussian", head=nn.Linear(8, 1)),
            "kind": Task("categorical", head=nn.Linear(8, 3)),
            "late": Task("laplace", head=nn.Linear(8, 1)),
        }
        self.register_tasks(tasks, weighting=WEIGHTINGS[weighting]())

    def task_losses(self, outputs, batch):
        losses = super().task_losses(outputs, batch)
        if self.training:
            self.seen.append({name: (total / count).item() for name, (total, count) in losses.items() if count})
        return losses

    def training_step(self, batch, batch_idx):
        total = self.task_step(self.trunk(batch["x"]).tanh(), batch, "train")
        self.log("total", total, batch_size=1)
        return total

    def validation_step(self, batch, batch_idx):
        self.task_step(self.trunk(batch["x"]).tanh(), batch, "val")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameter_groups(lr=1e-2, weight_decay=0.1))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self):
        self.resumed_at = self.global_step

    def on_before_backward(self, loss):
        self.kill("before backward")

    def on_before_optimizer_step(self, optimizer):
        self.kill("before the step")

    def on_save_checkpoint(self, checkpoint):
        self.kill("in the checkpoint")

    def on_train_batch_end(self, outputs, batch, batch_idx):  # callbacks have had their turn
        self.kill("after the checkpoint")


class BetweenStepAndCheckpoint(Callback):
    """Comes before ModelCheckpoint, which Lightning moves to the end."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.kill("before the checkpoint")


class Rows(Logger):
    """Keeps what is logged."""

    name, version = "rows", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params):
        pass


def fit(case: Case, kill: tuple[int, str] | None, folder: Path) -> dict[str, Any]:
    """Train to the end or to the kill, from the last checkpoint where there is one; return all that there is."""
    torch.manual_seed(0)
    net, rows, monitor = Net(case.weighting), Rows(), UncertaintyMonitor(table=False)
    callbacks = [
        ModelCheckpoint(folder, every_n_train_steps=SAVED_EVERY, save_top_k=-1, save_last=True),
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


def _run_all(out: Path) -> None:
    warnings.simplefilter("ignore")  # Lightning's advice; ours would be repeated in every child
    torch.set_num_threads(1)
    for name, case in CASES.items():
        folder, whole = out / name, out / _uninterrupted(case)
        folder.mkdir()
        if not whole.exists():
            _fork(case, None, out / f"{whole.stem}, checkpoints", whole)
        for kill in case.kills:
            _fork(case, kill, folder, folder / "never.pt")
        _fork(case, None, folder, out / f"{name}.pt")


def _uninterrupted(case: Case) -> str:
    return f"{case.weighting}, accumulate {case.accumulate}, whole.pt"


def run_killed(out: Path) -> Callable[[Case], tuple[dict[str, Any], dict[str, Any]]]:
    """Run every case; return what gives the end of its resumed and of its uninterrupted fit."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    log = out / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.trainer._resume", str(out)],
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        code = process.wait(timeout=200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its children too
    assert code == 0, log.read_text()
    return lambda case: (torch.load(out / f"{case}.pt"), torch.load(out / _uninterrupted(case)))


def bits(found: Any) -> Any:
    """What compares as equal to the last bit: NaN to NaN, 0 not to -0."""
    if isinstance(found, torch.Tensor):
        return str(found.dtype), tuple(found.shape), found.numpy().tobytes()
    if isinstance(found, dict):
        return {key: bits(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [bits(value) for value in found]
    return found.hex() if isinstance(found, float) else found


if __name__ == "__main__":
    _run_all(Path(sys.argv[1]))
