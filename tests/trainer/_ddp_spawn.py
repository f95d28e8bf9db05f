"""A plain script whose Trainer starts the processes itself, and what is left when they have ended."""

from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger

from tests.trainer._ddp import FIRST, fit_spawned

PROCESSES = 1
LEFT = "left"


def run(cells: list[str]) -> dict[str, Any]:
    """Cells are weightings, fitted side by side; beside each one's state there is, as LEFT, what the outermost left."""
    logger = CSVLogger(Path.cwd(), name=None, version="csv")
    net, fitted, states = fit_spawned(sorted(cells, key=lambda cell: cell != FIRST), logger=logger)
    return {**states, LEFT: {"fitted": fitted, "sigma": net.sigma()}}
