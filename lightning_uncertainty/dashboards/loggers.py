"""What a logger of any kind is given: the config of a run, and pictures."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_uncertainty.dashboards.tensorboard import before_keys

__all__ = ["log_config", "log_picture"]


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
