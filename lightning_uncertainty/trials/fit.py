"""One fit: a new model of the user's, under one weighting and one seed."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from pytorch_lightning import seed_everything
from torch._dynamo import OptimizedModule

from lightning_uncertainty.callbacks.base import require_tasks
from lightning_uncertainty.weightings import Weighting

__all__ = ["QUIET", "Data", "Make", "Maker", "NewWeighting", "SetupError", "check_loaders", "fit", "new_weighting"]

Make = Callable[..., Any]  # from a weighting, and settings by name
Data = Any  # a LightningDataModule, a pair of loaders, or a function that returns either
NewWeighting = Weighting | Callable[[], Weighting]

PACKAGES = ("pytorch_lightning", "lightning.pytorch")
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}


class SetupError(ValueError):
    """What is asked for would be wrong in every trial: no failure of one fit."""


def new_weighting(name: str, given: NewWeighting) -> Weighting:
    """Return a weighting that belongs to no module: what a function makes, or the copy of one.

    Raises:
        ValueError: it belongs to a module already, or is none.
    """
    weighting = deepcopy(given) if isinstance(given, Weighting) else given() if callable(given) else given
    if not isinstance(weighting, Weighting):
        raise ValueError(
            f"weightings should be weightings, or functions without arguments that make them: found "
            f"{type(weighting).__name__} for {name!r}; write {{'uncertainty': UncertaintyWeighting}}"
        )
    if weighting.tasks:
        raise ValueError(
            f"a weighting should belong to no module yet: found {name!r} bound to {', '.join(weighting.tasks)}; give a "
            "function that makes a new one, as its class"
        )
    return weighting


class Maker:
    """Calls the user's function, and looks at what it returns.

    Args:
        make: from a weighting to a LightningModule that is a `MultiTaskMixin`.
    """

    def __init__(self, make: Make) -> None:
        self.make = make
        self._last: list[Callable[[], Any]] = []  # parameters of the last module, as long as they live

    def __call__(self, weighting: Weighting, **settings: Any) -> Any:
        """Return a new module with this weighting, at these settings.

        Raises:
            TypeError: it is no `MultiTaskMixin`.
            ValueError: it has another weighting, or parameters of the module before it.
        """
        module = self.make(weighting, **settings)
        if isinstance(module, OptimizedModule):
            raise SetupError(
                "make should return a LightningModule: found what torch.compile makes of one; write module.compile(), "
                "which compiles in place, and return the module"
            )
        require_tasks("a trial", module)
        given = module._task_fit.given
        if given is None or given() is not weighting:
            raise SetupError(
                f"make should give its argument to register_tasks: found {module.task_weighting!r} in the module and "
                f"not the {type(weighting).__name__} that it was called with; write register_tasks(..., "
                "weighting=weighting)"
            )
        parameters = list(module.parameters())
        last = {id(parameter) for reference in self._last if (parameter := reference()) is not None}
        if any(id(parameter) in last for parameter in parameters):
            raise SetupError(
                "make should build every network anew: found parameters that the module before had too, which would go "
                "on from what that one learnt; build backbone and heads inside make"
            )
        self._last = [weakref.ref(parameter) for parameter in parameters]
        return module


def fit(
    make: Callable[[], Any], data: Data, seed: int, options: Mapping[str, Any], callbacks: Sequence[Any], tested: bool
) -> tuple[Any, dict[str, float]]:
    """Train a new module; return it and, if so, what it finds on the test data.

    The Trainer is that of the package which the module is of. Its callbacks are ours and copies of the user's.

    Raises:
        ValueError: as `Maker`, or the Trainer has several processes.
    """
    seed_everything(seed, workers=True, verbose=False)
    module = make()
    loaders = data() if callable(data) else data
    if isinstance(loaders, tuple | list):
        check_loaders(loaders, tested)
    own = deepcopy(_as_list(options.get("callbacks")))
    with _silent():
        trainer = _trainer_of(module)(**{**QUIET, **options, "callbacks": [*callbacks, *own]})
        if trainer.world_size > 1:
            raise SetupError(
                f"a trial should run in one process: found {trainer.world_size}; give the Trainer devices=1, and start "
                "several programs on the same folder or storage to use several devices"
            )
        if trainer.max_epochs == 0 or trainer.max_steps == 0:
            raise SetupError(
                f"a trial should train: found max_epochs={trainer.max_epochs} and max_steps={trainer.max_steps}; raise "
                "them"
            )
        with _interruptible():
            if isinstance(loaders, tuple | list):
                trainer.fit(module, *loaders[:2])
            else:
                trainer.fit(module, datamodule=loaders)
            if not tested:
                return module, {}
            if isinstance(loaders, tuple | list):
                trainer.test(module, loaders[2], verbose=False)
            else:
                trainer.test(module, datamodule=loaders, verbose=False)
    found = {key: value.item() for key, value in trainer.callback_metrics.items() if value.numel() == 1}
    return module, {key: value for key, value in found.items() if key.startswith("test/")}


def check_loaders(loaders: Sequence[Any], tested: bool) -> None:
    """Look whether there are loaders for all that a trial does.

    Raises:
        SetupError: there are not.
    """
    if len(loaders) < 2 + tested:
        rule = "settings should be reported on test data" if tested else "a trial should be validated"
        all_of_them = "training, validation and testing" if tested else "training and validation"
        raise SetupError(
            f"{rule}: found {len(loaders)} loader{'s' * (len(loaders) != 1)}; give those for {all_of_them}, or a "
            "LightningDataModule"
        )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt wherever Ctrl-C was pressed, and leave the program to SIGTERM with its status.

    The Trainer ends its fit by it and leaves the program without a word, with Ctrl-C switched off; a data loader whose
    workers were interrupted raises an error of its own first; a hook of the interpreter may drop it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, pressed = signal.getsignal(signal.SIGINT), []

    def press(number: int, frame: Any) -> None:
        pressed.append(number)
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGINT, press)
    try:
        yield
    except BaseException as error:
        if pressed or isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        if type(error).__name__ == "SIGTERMException":  # one of each package of Lightning
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    else:
        if pressed:
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _silent() -> Iterator[None]:
    """Without the news that each Trainer has, once for every trial; warnings stay."""
    loggers = [logging.getLogger(f"{package}.utilities.rank_zero") for package in PACKAGES]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _as_list(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, tuple | list) else [callbacks]


def _trainer_of(module: Any) -> Any:
    """Return the Trainer class of the Lightning package that a module is of."""
    other = sys.modules.get("lightning.pytorch")
    if other is not None and isinstance(module, other.LightningModule):
        return other.Trainer
    from pytorch_lightning import Trainer

    return Trainer
