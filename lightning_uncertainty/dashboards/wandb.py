"""wandb's saved view and table."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from lightning_uncertainty.dashboards.charts import KINDS, LOG_KINDS, MOST_PAIRED, TaskNames, metrics_by_task
from lightning_uncertainty.dashboards.loggers import one_line

__all__ = ["check_comparison_logger", "log_comparison", "log_task_table", "save_wandb_workspace", "wandb_workspace"]

_STEP = "trainer/global_step"  # the x axis of WandbLogger


def wandb_workspace(
    entity: str,
    project: str,
    tasks: TaskNames,
    *,
    prefix: str = "",
    name: str = "Uncertainty weighting",
    more: Mapping[str, Iterable[str]] | None = None,
    pictures: str = "pictures/",
    log: Iterable[str] = ("sigma", "weight"),
) -> Any:
    """Build the view of a wandb project that shows all tasks in one chart; `save_wandb_workspace` puts it there.

    Below the charts, folded, are three more sections: what a `GradientConflictMonitor` logs, the tables and pictures
    of the tasks and of a comparison (`Comparison.log`), and the pictures of predictions (`PredictionImages`).

    Args:
        entity: user or team that owns the project.
        project: name of the project.
        tasks: task names, or a mapping from task name to the names of its metrics, which gives each such task a chart
            of `val/<task>/<metric>`.
        prefix: that of the `UncertaintyMonitor`.
        name: title of the view and of its section.
        more: charts of other keys by title, as of what an adopted module logs by itself: `{"host": ["train_loss"]}`.
        pictures: prefix of the `PredictionImages`.
        log: what is on a log axis, of sigma, weight and loss. wandb leaves out what is not positive there, as the loss
            of a heteroscedastic task may be; give losses too where all stay positive.

    Returns:
        A `wandb_workspaces.workspaces.Workspace`; building it needs no account.

    Raises:
        ValueError: there is no task, a task is there twice, names or keys are no list of texts, or `more` has no
            titles.
        ModuleNotFoundError: wandb-workspaces is not installed.

    Example:
        >>> workspace = wandb_workspace("me", "scenes", {"depth": ["MeanAbsoluteError"], "normals": []})
        >>> [panel.y for panel in workspace.sections[0].panels][0]
        ['sigma/depth', 'sigma/normals']
    """
    metrics = metrics_by_task(tasks)
    log = list(log)
    if wrong := [kind for kind in log if kind not in LOG_KINDS]:
        raise ValueError(f"log should be of {', '.join(LOG_KINDS)}: found {', '.join(wrong)}")
    others = _by_title(more)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pydantic's, for wandb_workspaces itself
            import wandb_workspaces.workspaces as workspaces

            reports: Any = importlib.import_module("wandb_workspaces.reports.v2")  # untyped
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a wandb workspace needs wandb-workspaces: pip install 'lightning-uncertainty[workspace]'"
        ) from error

    def chart(title: str, keys: Iterable[str], **options: Any) -> Any:
        return reports.LinePlot(title=title, x=_STEP, y=list(keys), title_x="step", **options)

    def training(kind: str, **options: Any) -> Any:
        if kind in log:
            options["log_y"] = True
        return chart(KINDS[kind], (f"{prefix}{kind}/{task}" for task in metrics), **options)

    def media(title: str, keys: list[str]) -> Any:
        return reports.MediaBrowser(title=title, media_keys=keys)

    panels = [
        training("sigma"),
        training("sigma_gap"),
        training("weight"),
        training("loss_share", plot_type="pct-area"),
        training("loss"),
        chart("held-out loss", (f"val/{task}/loss" for task in metrics), **({"log_y": True} if "loss" in log else {})),
        chart("held-out balanced loss", ["val/balanced_loss"]),
        *(
            chart(f"held-out {task}", (f"val/{task}/{metric}" for metric in names))
            for task, names in metrics.items()
            if names
        ),
        *(chart(title, keys) for title, keys in others.items()),
    ]
    pairs = list(combinations(metrics, 2)) if len(metrics) <= MOST_PAIRED else []
    conflicts = [
        chart("cosine of two tasks' gradients", [f"{prefix}cosine/{a}/{b}" for a, b in pairs]),
        chart("cosine, lowest and mean", [f"{prefix}cosine/min", f"{prefix}cosine/mean"]),
        chart("how fast the worst task changes", [f"{prefix}first_order_change"]),
        media("heat maps", [f"{prefix}{kind}/heat_map" for kind in ("cosine", "magnitude_similarity")]),
    ]
    tables = [
        reports.WeavePanelSummaryTable(table_name=f"{prefix}tasks"),
        reports.WeavePanelSummaryTable(table_name="comparison"),
        media("gains", ["comparison_plot"]),
    ]
    predictions = [
        media("predictions", [f"{pictures}{task}" for task in metrics]),
        media("classes over images", [f"{pictures}mask_overlay"]),
        media("prediction against truth", [f"{pictures}parity_plot"]),
    ]

    def section(title: str, shown: list[Any], *, is_open: bool) -> Any:
        layout = workspaces.SectionLayoutSettings(columns=2, rows=-(-len(shown) // 2))
        return workspaces.Section(name=title, panels=shown, is_open=is_open, pinned=is_open, layout_settings=layout)

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            section(name, panels, is_open=True),
            section("Gradient conflicts", conflicts[0 if len(pairs) else 1 :], is_open=False),
            section("Tables and pictures", tables, is_open=False),
            section("Pictures of predictions", predictions, is_open=False),
        ],
        settings=workspaces.WorkspaceSettings(x_axis=_STEP, group_by_prefix="first"),
        auto_generate_panels=True,
    )


def _by_title(more: Any) -> dict[str, list[str]]:
    if more is not None and not isinstance(more, Mapping):
        raise ValueError(
            f"more should have lists of keys by the title of their chart: found {more!r}; write "
            "{'host': ['train_loss']}"
        )
    return {title: _listed(title, keys) for title, keys in (more or {}).items()}


def _listed(title: str, keys: Any) -> list[str]:
    if isinstance(keys, str):
        raise ValueError(f"the keys of chart {title!r} should be a list: found the text {keys!r}; write [{keys!r}]")
    listed = list(keys) if isinstance(keys, Iterable) else []
    if not isinstance(keys, Iterable) or not all(isinstance(key, str) for key in listed):
        raise ValueError(
            f"the keys of chart {title!r} should be a list of what is logged: found {keys!r}; write ['train_loss']"
        )
    return listed


def save_wandb_workspace(
    entity: str,
    project: str,
    tasks: TaskNames,
    *,
    prefix: str = "",
    name: str = "Uncertainty weighting",
    more: Mapping[str, Iterable[str]] | None = None,
    pictures: str = "pictures/",
    log: Iterable[str] = ("sigma", "weight"),
) -> str:
    """Build the view as `wandb_workspace` does, save it in the project, and return its address; once is enough.

    Raises:
        ValueError: as `wandb_workspace`.
        ModuleNotFoundError: wandb-workspaces is not installed.
        RuntimeError: wandb knows no account on this machine, or its server refuses the view.
    """
    workspace = wandb_workspace(entity, project, tasks, prefix=prefix, name=name, more=more, pictures=pictures, log=log)
    from wandb.errors import AuthenticationError, UsageError

    try:
        return str(workspace.save().url)
    except (AuthenticationError, UsageError) as error:
        raise RuntimeError(
            f"saving a wandb workspace needs an account: found none that works ({one_line(error)}); run `wandb login` "
            "or set WANDB_API_KEY"
        ) from error
    except Exception as error:  # wandb's releases raise different classes when a server refuses
        raise RuntimeError(
            f"wandb should take the workspace for {entity}/{project}: found a refusal ({one_line(error)}); look "
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


def check_comparison_logger(logger: Any) -> Any:
    """Return the run of wandb that a logger, or that itself, is.

    Raises:
        ValueError: it is neither.
    """
    from wandb.sdk.wandb_run import Run

    run = logger if isinstance(logger, Run) else getattr(logger, "experiment", None)
    if not isinstance(run, Run):
        raise ValueError(f"a comparison should be logged to a WandbLogger or a run of wandb: found {logger!r}")
    return run


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

    run = check_comparison_logger(logger)
    table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
    run.log({"comparison": table, "comparison_plot": wandb.Image(figure)})
    run.summary.update(dict(summary))
