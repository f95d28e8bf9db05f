"""The command line: `lightning-uncertainty --help` lists what it can do; `MultiTaskCLI` is made to be subclassed."""

from lightning_uncertainty.cli.commands import main
from lightning_uncertainty.cli.trainer import MultiTaskCLI

__all__ = ["MultiTaskCLI", "main"]
