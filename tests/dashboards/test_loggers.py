"""What a logger of any kind is given."""

import re
import warnings

import pytest
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_uncertainty import FixedWeighting, GradientConflictMonitor, UncertaintyMonitor
from lightning_uncertainty.dashboards.loggers import log_config, refusable
from tests._nets import Plain, trainer, tuples
from tests.callbacks._watched import Watched
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


# -- refusals ----------------------------------------------------------------------------------------------------------


class Refusing(Flat):
    """Says no where it is told to, as a server that is gone."""

    def __init__(self, *refused):
        super().__init__()
        self.refused, self.rows = refused, []

    def _ask(self, what):
        if what in self.refused:
            raise ConnectionError(f"no\n  {what}")

    @property
    def experiment(self):
        self._ask("experiment")
        return self

    def add_custom_scalars(self, layout):
        self._ask("layout")

    def add_figure(self, key, figure, step, close):
        self._ask("figure")

    def log_hyperparams(self, params):
        self._ask("config")
        super().log_hyperparams(params)

    def log_metrics(self, metrics, step=None):
        self._ask("metrics")
        self.rows.append(step)


def refusals(net, logger, monitor, *loaders):
    """Fit to the end; return what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(logger=logger, callbacks=[monitor]).fit(net, *loaders)
    return [str(warning.message) for warning in caught if "found a refusal" in str(warning.message)]


@pytest.mark.parametrize(
    ("refused", "what"),
    [("config", "the entry 'uncertainty' of its config"), ("layout", "a layout"), ("metrics", "a row")],
)
def test_what_a_logger_refuses_is_told_once_and_the_rest_goes_on(refused, what):
    logger, other, monitor = Refusing(refused), Refusing(), UncertaintyMonitor(table=False)
    (message,) = refusals(Plain(), [logger, other], monitor, tuples())
    assert message == f"Refusing should take {what}: found a refusal (no {refused}); it goes on without"
    assert other.rows == [row["step"] for row in monitor.history.rows] == list(range(8))
    assert logger.rows == ([] if refused == "metrics" else other.rows)
    assert other.parameters


def test_pictures_and_rows_that_a_logger_refuses_are_told_once():
    logger, monitor = Refusing("figure", "metrics"), GradientConflictMonitor(2)
    refused = [("a row", "metrics"), ("a picture", "figure")]
    assert refusals(Watched(), logger, monitor) == [
        f"Refusing should take {what}: found a refusal (no {why}); it goes on without" for what, why in refused
    ]
    assert len(monitor.history.rows) == 10


def test_a_second_fit_into_a_run_that_holds_fast_is_no_error():
    """As one of MLflow, whose parameters never change."""
    logger = Flat()
    assert refusals(Plain(), logger, UncertaintyMonitor(), tuples()) == []
    (message,) = refusals(Plain(FixedWeighting()), logger, UncertaintyMonitor(), tuples())
    assert message.startswith("Flat should take the entry 'uncertainty' of its config: found a refusal (")


def test_interruptions_are_no_refusals():
    with pytest.raises(KeyboardInterrupt), refusable(Flat(), "a row"):
        raise KeyboardInterrupt
