"""An epoch of scenes of 256 x 512 pixels on a GPU: in mixed precision, and as torch's compiler makes it."""

import math
import time

import pytest
import torch
import torch._dynamo
from pytorch_lightning import Callback

from lightning_uncertainty import UncertaintyMonitor, UncertaintyWeighting
from lightning_uncertainty.examples.scenes import SceneData, SceneModule
from tests._nets import trainer
from tests.gpu._device import ACCELERATOR, REHEARSED, for_gpu, on_device

pytestmark = [*for_gpu, pytest.mark.filterwarnings("default")]  # the compiler's own are nobody's business here

SIZE, BATCH, STREETS = ((64, 128), 2, (8, 2, 1)) if REHEARSED else ((256, 512), 8, (64, 8, 1))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Streets, that are drawn before a fit asks for them."""
    made = SceneData(tmp_path_factory.mktemp("streets"), size=SIZE, batch_size=BATCH, streets=STREETS)
    made.prepare_data()
    return made


class Clock(Callback):
    """When the last epoch began."""

    def on_train_epoch_start(self, trainer, pl_module):
        self.begun = time.monotonic()


def fit(data, precision, mode=None):
    """Return losses of the validation scenes, what the monitor saw, and the seconds of the second of two epochs."""
    torch.manual_seed(0)
    module = SceneModule(data.classes, data.scales(), UncertaintyWeighting(), things=data.things, epochs=2)
    monitor, clock = UncertaintyMonitor(table=False), Clock()
    how = {"backend": "aot_eager"} if REHEARSED else {"mode": mode}
    options = {"accelerator": ACCELERATOR, "precision": precision, "log_every_n_steps": 1}
    with on_device():
        fitting = trainer(max_epochs=2, callbacks=[monitor, clock], **options)
        fitting.fit(module if mode is None else torch.compile(module, **how), data)
        losses = {key: value.item() for key, value in fitting.callback_metrics.items() if key.startswith("val/")}
    return losses, monitor.history.rows, time.monotonic() - clock.begun


@pytest.fixture(scope="module")
def in_float32(data):
    return fit(data, "32-true")


@pytest.mark.parametrize(("precision", "mode"), [("16-mixed", None), ("bf16-mixed", None), ("bf16-mixed", "default")])
def test_mixed_precision_learns_what_float32_does(data, in_float32, precision, mode, record_property):
    torch._dynamo.reset()
    losses, rows, seconds = fit(data, precision, mode)
    expected, expected_rows, at_most = in_float32
    record_property(f"scenes, {precision}, compiled: {mode}: seconds of an epoch", seconds)
    record_property("scenes, 32-true: seconds of an epoch", at_most)
    assert len(rows) == len(expected_rows) > 0
    assert all(math.isfinite(value) for row in rows for value in row.values())
    for task in ("semantics", "instances", "disparity"):
        assert losses[f"val/{task}/loss"] == pytest.approx(expected[f"val/{task}/loss"], rel=0.15), task
