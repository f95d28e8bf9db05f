"""One HTML page of a run, for readers without any dashboard: read what a logger left, or take rows, and write it."""

from lightning_uncertainty.dashboards.report._page import write_report
from lightning_uncertainty.dashboards.report._read import read_run
from lightning_uncertainty.dashboards.report._run import Run

__all__ = ["Run", "read_run", "write_report"]
