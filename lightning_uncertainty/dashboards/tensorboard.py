"""TensorBoard's layout."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lightning_uncertainty.dashboards.charts import KINDS, metrics_by_task

__all__ = ["before_keys", "log_tensorboard_layout", "sigma_optima", "tensorboard_layout"]


def tensorboard_layout(
    tasks: Iterable[str], *, prefix: str = "", sigma: bool | Collection[str] = True, held_out: str | None = "val"
) -> dict[str, dict[str, list[Any]]]:
    """Return a layout for TensorBoard's custom scalars: all tasks in one chart, and each task's σ beside its optimum.

    The band between σ and its optimum σ* needs `sigma_optimum/<task>`, which the `UncertaintyMonitor` writes to loggers
    that have the layout.

    Args:
        tasks: task names.
        prefix: stands before every training key.
        sigma: whether tasks have log-variances, or the names of those that do.
        held_out: stands before `/<task>/loss`; None for no chart of held-out losses.

    Raises:
        ValueError: there is no task, a task is there twice, or the names are one text instead of a list.

    Example:
        >>> tensorboard_layout(["depth", "normals"])["Uncertainty weighting"]["σ"]
        ['Multiline', ['^sigma/depth$', '^sigma/normals$']]
    """
    names = list(metrics_by_task(tasks))
    with_sigma = [task for task in names if sigma is True or (sigma and task in sigma)]

    def lines(keys: Iterable[str]) -> list[Any]:
        return ["Multiline", [f"^{re.escape(key)}$" for key in keys]]

    shown = {kind: with_sigma if kind.startswith("sigma") else names for kind in KINDS}
    charts = {
        KINDS[kind]: lines(f"{prefix}{kind}/{task}" for task in of_kind) for kind, of_kind in shown.items() if of_kind
    }
    if held_out is not None:
        charts["held-out loss"] = lines(f"{held_out}/{task}/loss" for task in names)
    layout = {"Uncertainty weighting": charts}
    if with_sigma:
        layout["σ and its optimum"] = {
            f"σ of {task}, band to σ*": ["Margin", [own, own, f"{prefix}sigma_optimum/{task}"]]
            for task, own in ((task, f"{prefix}sigma/{task}") for task in with_sigma)
        }
    return layout


def log_tensorboard_layout(
    logger: Any, tasks: Iterable[str], *, prefix: str, sigma: bool | Collection[str], held_out: bool
) -> bool:
    """Write the layout to a logger of TensorBoard, and return whether this is one."""
    write = getattr(getattr(logger, "experiment", None), "add_custom_scalars", None)
    if not callable(write):
        return False
    before = before_keys(logger)
    write(tensorboard_layout(tasks, prefix=before + prefix, sigma=sigma, held_out=f"{before}val" if held_out else None))
    return True


def before_keys(logger: Any) -> str:
    """Return what a TensorBoardLogger(prefix=...) puts before every key."""
    own = getattr(logger, "_prefix", "")
    return f"{own}{logger.LOGGER_JOIN_CHAR}" if own else ""


def sigma_optima(sigma: Mapping[str, float], gaps: Mapping[str, float]) -> dict[str, float]:
    """Return σ* by task, from σ and its gap σ/σ* - 1.

    Example:
        >>> sigma_optima({"depth": 3.0}, {"depth": 0.5})
        {'depth': 2.0}
    """
    return {task: value / (1 + gaps[task]) for task, value in sigma.items() if gaps[task] > -1}
