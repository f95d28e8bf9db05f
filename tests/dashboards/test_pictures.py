"""What loggers are given of pictures; what wandb and TensorBoard have of them is read back where they are drawn."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import DummyLogger

from lightning_uncertainty.dashboards.pictures import log_pictures, save_pictures, takes_pictures

PICTURE = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)


class Client:
    """Takes images as MLflow's client does."""

    def __init__(self):
        self.taken = []

    def log_image(self, run_id, image, artifact_file=None, key=None, step=None, timestamp=None, synchronous=None):
        assert (artifact_file is None) != (key is None)
        self.taken.append((run_id, key, step, image))


class MLflow(DummyLogger):
    """As Lightning's MLFlowLogger: a client and the id of a run."""

    LOGGER_JOIN_CHAR = "-"

    def __init__(self, prefix=""):
        super().__init__()
        self._client, self._prefix = Client(), prefix

    @property
    def experiment(self):
        return self._client

    @property
    def run_id(self):
        return "run 1"


@pytest.mark.parametrize(("prefix", "key"), [("", "pictures/depth"), ("old", "old-pictures/depth")])
def test_mlflow_is_given_pictures_by_key_and_step(prefix, key):
    logger = MLflow(prefix)
    assert takes_pictures(logger)
    log_pictures(logger, {"pictures/depth": PICTURE}, {}, 7)
    ((run_id, logged, step, image),) = logger.experiment.taken
    assert (run_id, logged, step) == ("run 1", key, 7)
    assert image is PICTURE


def test_others_take_none(tmp_path):
    for logger in (CSVLogger(tmp_path), SimpleNamespace(experiment=Client()), SimpleNamespace()):
        assert not takes_pictures(logger)
    log_pictures(CSVLogger(tmp_path), {"pictures/depth": PICTURE}, {}, 0)


def test_a_folder_holds_pictures_by_name_and_step(tmp_path):
    paths = save_pictures(tmp_path / "new", {"depth": PICTURE, "one/0": PICTURE}, 1234)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "new/depth/step=001234.png",
        "new/one/0/step=001234.png",
    ]
    assert all((np.asarray(Image.open(path)) == PICTURE).all() for path in paths)
