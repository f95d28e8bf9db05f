"""Runs for the tests: one fit under three loggers, and rows written by hand."""

import warnings
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from lightning_uncertainty import UncertaintyMonitor, UncertaintyWeighting
from lightning_uncertainty.dashboards import Run
from tests._nets import Owning, dicts, trainer


def fit(folder: Path) -> tuple[dict[str, Path], UncertaintyMonitor]:
    """Fit once under all three loggers; return their runs, and the monitor."""
    board, table = TensorBoardLogger(folder, name="board"), CSVLogger(folder, name="table")
    cloud = WandbLogger(project="test", name="birds", save_dir=folder, offline=True)
    monitor, net = UncertaintyMonitor(prefix="uw/", table=False), Owning(UncertaintyWeighting())
    fitting = trainer(max_epochs=4, logger=[board, table, cloud], callbacks=[monitor])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wandb's own
        for logger in fitting.loggers:
            logger.log_hyperparams({"lr": 0.01, "sizes": [4, 8], "optimizer": {"name": "Adam"}})
        fitting.fit(net, dicts(missing=True), dicts())
        run = Path(cloud.experiment.dir).parent
        cloud.experiment.finish()
    return {"board": Path(board.log_dir), "table": Path(table.log_dir), "cloud": run}, monitor


def by_hand(tasks: int = 2, rows: int = 5, **config) -> Run:
    """A run with all keys of a fit, in numbers that are easy to know again."""
    names = [f"task_{index}" for index in range(tasks)]
    logged = []
    for step in range(rows):
        row = {"step": step, "val/balanced_loss": -0.5 * step}
        for index, name in enumerate(names):
            row |= {
                f"loss/{name}": 10.0**index / (step + 1),
                f"sigma/{name}": 2.0 + index,
                f"sigma_gap/{name}": 0.25,
                f"weight/{name}": 1e-6 * (index + 1),
                f"loss_share/{name}": (index + 1) / (tasks * (tasks + 1) / 2),
                f"val/{name}/loss": 7.0 + index,
                f"val/{name}/MeanAbsoluteError": 3.0 + index,
            }
        logged.append(row)
    return Run("by hand", logged, config)
