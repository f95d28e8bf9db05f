"""What a logger of any kind is given."""

import re

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_uncertainty.dashboards.loggers import log_config
from tests.dashboards._config import CONFIG


class Flat(Logger):
    """Takes parameters as MLflow does: flat, short, and never another value under a key."""

    name, version = "flat", 0

    def __init__(self):
        super().__init__()
        self.parameters = {}

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        stack = [((key,), value) for key, value in params.items()]
        while stack:
            path, value = stack.pop()
            if isinstance(value, dict):
                stack += [((*path, key), inner) for key, inner in value.items()]
                continue
            key = "/".join(path)
            assert re.fullmatch(r"[\w. /-]+", key)
            assert self.parameters.setdefault(key, str(value)) == str(value)


def test_config_goes_to_loggers_that_flatten_and_hold_fast():
    logger = Flat()
    for _ in range(2):
        log_config(logger, CONFIG)
    assert logger.parameters == {
        "uncertainty/weighting": "UncertaintyWeighting()",
        "uncertainty/sigma_is/depth": "RMSE [label]",
    }


def test_config_stands_beside_what_is_there_and_tensorboard_gets_no_scalar(tmp_path):
    board = TensorBoardLogger(tmp_path)
    board.log_hyperparams({"width": 3}, metrics={})
    log_config(board, CONFIG)
    board.log_hyperparams({"depth": 2}, metrics={})
    assert board.hparams == {"width": 3, **CONFIG, "depth": 2}
    board.log_metrics({"loss": 1.0}, step=0)
    board.finalize("success")
    events = EventAccumulator(board.log_dir)
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
