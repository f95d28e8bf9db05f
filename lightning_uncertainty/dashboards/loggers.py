"""What a logger of any kind is given: the config of a run, and pictures; a refusal stops nothing."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_uncertainty.dashboards.tensorboard import before_keys

__all__ = ["log_config", "log_picture", "log_row", "one_line", "refusable"]


@contextmanager
def refusable(logger: Any, what: str, told: set[tuple[int, str]] | None = None) -> Iterator[None]:
    """Have what a logger refuses within be a warning: bookkeeping is no reason to end a fit.

    Args:
        logger: that is given something.
        what: it is given.
        told: holds what was warned of, which is not told again; None tells every time.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught, refusable("a logger", "a table"):
        ...     raise ConnectionError("nobody answers")
        >>> str(caught[0].message)
        'str should take a table: found a refusal (nobody answers); it goes on without'
    """
    try:
        yield
    except Exception as error:  # loggers raise whatever their servers and files do
        if told is None or (id(logger), what) not in told:
            (set() if told is None else told).add((id(logger), what))
            found = (
                f"{type(logger).__name__} should take {what}: found a refusal ({one_line(error)}); it goes on without"
            )
            warnings.warn(found, stacklevel=3)


def log_row(loggers: Iterable[Any], row: Mapping[str, float], step: int, told: set[tuple[int, str]]) -> None:
    """Log numbers to all loggers that take them; what one refuses is told once."""
    for logger in loggers:
        with refusable(logger, "a row", told):
            logger.log_metrics(metrics=row, step=step)


def one_line(error: Exception) -> str:
    """Return what an error says, in a line."""
    return " ".join(str(error).split()) or type(error).__name__


def log_picture(logger: Any, key: str, figure: Any, step: int) -> None:
    """Log a figure of matplotlib to a logger of wandb or TensorBoard; others get none."""
    experiment = getattr(logger, "experiment", None)
    write = getattr(experiment, "add_figure", None)
    if callable(write):
        write(before_keys(logger) + key, figure, step, close=False)
    elif "wandb" in sys.modules:
        from wandb.sdk.wandb_run import Run

        if isinstance(experiment, Run):
            logger.log_image(key, [figure], step=step)


def log_config(logger: Any, config: Mapping[str, Any]) -> None:
    """Put entries into the config of a logger's run, beside the hyper-parameters that are there; on rank zero.

    A logger that takes metrics with hyper-parameters, as TensorBoard's, is given none: else it would invent a scalar
    `hp_metric` of -1, and a set of hyper-parameters in which those of the module are missing.
    """
    takes_metrics = "metrics" in inspect.signature(logger.log_hyperparams).parameters
    logger.log_hyperparams(dict(config), **({"metrics": {}} if takes_metrics else {}))
    name = getattr(logger, "NAME_HPARAMS_FILE", None)  # Lightning's DummyLogger answers to any name
    if isinstance(name, str) and (file := Path(logger.log_dir, name)).is_file():  # written once and for all otherwise
        from pytorch_lightning.core.saving import save_hparams_to_yaml

        save_hparams_to_yaml(file, logger.hparams)
