"""What a logger shows beside the rows: the run's config, TensorBoard's layout, wandb's table and saved view."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "KINDS",
    "LOG_KINDS",
    "log_comparison",
    "log_config",
    "log_picture",
    "log_task_table",
    "log_tensorboard_layout",
    "save_wandb_workspace",
    "sigma_optima",
    "tensorboard_layout",
    "wandb_workspace",
]

KINDS: dict[str, str] = {
    "sigma": "σ",
    "sigma_gap": "σ / σ* - 1",
    "weight": "effective weight",
    "weight_share": "share of the weight",
    "loss": "loss",
}
LOG_KINDS = ("sigma", "weight", "loss")  # drawn on a log axis
_STEP = "trainer/global_step"  # the x axis of WandbLogger

TaskNames = Iterable[str] | Mapping[str, Iterable[str]]


# -- wandb -------------------------------------------------------------------------------------------------------------


def wandb_workspace(
    entity: str, project: str, tasks: TaskNames, *, prefix: str = "", name: str = "Uncertainty weighting"
) -> Any:
    """Build the view of a wandb project that shows all tasks in one chart; `save_wandb_workspace` puts it there.

    Args:
        entity: user or team that owns the project.
        project: name of the project.
        tasks: task names, or a mapping from task name to the names of its metrics, which gives each such task a chart
            of `val/<task>/<metric>`.
        prefix: that of the `UncertaintyMonitor`.
        name: title of the view and of its section.

    Returns:
        A `wandb_workspaces.workspaces.Workspace`; building it needs no account.

    Raises:
        ValueError: there is no task, a task is there twice, or names are one text instead of a list.
        ModuleNotFoundError: wandb-workspaces is not installed.

    Example:
        >>> workspace = wandb_workspace("me", "scenes", {"depth": ["MeanAbsoluteError"], "normals": []})
        >>> [panel.y for panel in workspace.sections[0].panels][0]
        ['sigma/depth', 'sigma/normals']
    """
    metrics = _metrics_by_task(tasks)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pydantic's, for wandb_workspaces itself
            import wandb_workspaces.reports.v2 as reports
            import wandb_workspaces.workspaces as workspaces
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a wandb workspace needs wandb-workspaces: pip install 'lightning-uncertainty[workspace]'"
        ) from error

    def chart(title: str, keys: Iterable[str], **options: Any) -> Any:
        return reports.LinePlot(title=title, x=_STEP, y=list(keys), title_x="step", **options)  # type: ignore[attr-defined]

    def training(kind: str, **options: Any) -> Any:
        if kind in LOG_KINDS:
            options["log_y"] = True
        return chart(KINDS[kind], (f"{prefix}{kind}/{task}" for task in metrics), **options)

    panels = [
        training("sigma"),
        training("sigma_gap"),
        training("weight"),
        training("weight_share", plot_type="pct-area"),
        training("loss"),
        chart("held-out loss", (f"val/{task}/loss" for task in metrics), log_y=True),
        chart("held-out balanced loss", ["val/balanced_loss"]),
        *(
            chart(f"held-out {task}", (f"val/{task}/{metric}" for metric in names))
            for task, names in metrics.items()
            if names
        ),
    ]
    section = workspaces.Section(
        name=name,
        panels=panels,
        is_open=True,
        pinned=True,
        layout_settings=workspaces.SectionLayoutSettings(columns=2, rows=-(-len(panels) // 2)),
    )
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[section],
        settings=workspaces.WorkspaceSettings(x_axis=_STEP, group_by_prefix="first"),
        auto_generate_panels=True,
    )


def save_wandb_workspace(
    entity: str, project: str, tasks: TaskNames, *, prefix: str = "", name: str = "Uncertainty weighting"
) -> str:
    """Build the view as `wandb_workspace` does, save it in the project, and return its address; once is enough.

    Raises:
        ValueError: as `wandb_workspace`.
        ModuleNotFoundError: wandb-workspaces is not installed.
        RuntimeError: wandb knows no account on this machine, or its server refuses the view.
    """
    workspace = wandb_workspace(entity, project, tasks, prefix=prefix, name=name)
    from wandb.errors import AuthenticationError, UsageError

    try:
        return str(workspace.save().url)
    except (AuthenticationError, UsageError) as error:
        raise RuntimeError(
            f"saving a wandb workspace needs an account: found none that works ({_one_line(error)}); run `wandb login` "
            "or set WANDB_API_KEY"
        ) from error
    except Exception as error:  # wandb's releases raise different classes when a server refuses
        raise RuntimeError(
            f"wandb should take the workspace for {entity}/{project}: found a refusal ({_one_line(error)}); look "
            "whether both names are right and your account may write there"
        ) from error


def log_task_table(logger: Any, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Log a table to a logger of wandb; other loggers, and one whose experiment only resembles a wandb run, get none.

    Rows hold numbers and texts by column, None where a row has no such entry.
    """
    if "wandb" not in sys.modules:
        return
    from wandb.sdk.wandb_run import Run

    if isinstance(getattr(logger, "experiment", None), Run):
        logger.log_table(key, columns=list(columns), data=[list(row) for row in rows])


def log_comparison(
    logger: Any, columns: Sequence[str], rows: Sequence[Sequence[Any]], figure: Any, summary: Mapping[str, float]
) -> None:
    """Give a run of wandb the table and the picture of a comparison, and single numbers to its summary.

    Args:
        logger: the run, or a WandbLogger of either Lightning package.
        columns: of the table.
        rows: of the table.
        figure: of matplotlib.
        summary: by key.

    Raises:
        ValueError: it is neither.
    """
    import wandb
    from wandb.sdk.wandb_run import Run

    run = logger if isinstance(logger, Run) else getattr(logger, "experiment", None)
    if not isinstance(run, Run):
        raise ValueError(f"a comparison should be logged to a WandbLogger or a run of wandb: found {logger!r}")
    table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
    run.log({"comparison": table, "comparison_plot": wandb.Image(figure)})
    run.summary.update(dict(summary))


# -- TensorBoard -------------------------------------------------------------------------------------------------------


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
    names = list(_metrics_by_task(tasks))
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
    before = _before_keys(logger)
    write(tensorboard_layout(tasks, prefix=before + prefix, sigma=sigma, held_out=f"{before}val" if held_out else None))
    return True


def _before_keys(logger: Any) -> str:
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


# -- any logger --------------------------------------------------------------------------------------------------------


def log_picture(logger: Any, key: str, figure: Any, step: int) -> None:
    """Log a figure of matplotlib to a logger of wandb or TensorBoard; others get none."""
    experiment = getattr(logger, "experiment", None)
    write = getattr(experiment, "add_figure", None)
    if callable(write):
        write(_before_keys(logger) + key, figure, step, close=False)
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


def _metrics_by_task(tasks: TaskNames) -> dict[str, list[str]]:
    """Return the names of metrics by task, in order; none where only tasks were named."""
    if isinstance(tasks, str):
        raise ValueError(f"tasks should be a list of names: found the text {tasks!r}; write [{tasks!r}]")
    found: dict[str, list[str]] = {}
    for task, metrics in tasks.items() if isinstance(tasks, Mapping) else ((task, ()) for task in tasks):
        if not isinstance(task, str) or not task:
            raise ValueError(f"a task should be given by its name: found {task!r}; name it as in register_tasks")
        if isinstance(metrics, str):
            raise ValueError(
                f"the metrics of task {task!r} should be a list of names: found the text {metrics!r}; write "
                f"[{metrics!r}], as in `val/{task}/{metrics}`"
            )
        if task in found:
            raise ValueError(f"tasks should be named once each: found {task!r} twice; drop one")
        found[task] = list(metrics)
    if not found:
        raise ValueError("tasks should be at least one: found none; name those of register_tasks, as in ['depth']")
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
