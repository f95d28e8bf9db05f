"""What a logger shows beside the rows, and one HTML page of a run."""

from lightning_uncertainty.dashboards.report import Run, read_run, write_report
from lightning_uncertainty.dashboards.tensorboard import tensorboard_layout
from lightning_uncertainty.dashboards.wandb import save_wandb_workspace, wandb_workspace

__all__ = ["Run", "read_run", "save_wandb_workspace", "tensorboard_layout", "wandb_workspace", "write_report"]
