"""A fit that torch's compiler has made programs for a GPU of, with CUDA graphs and without."""

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from lightning_uncertainty import UncertaintyMonitor
from tests._nets import Owning, in_a_row, tensors, trainer
from tests.gpu._device import ACCELERATOR, REHEARSED, for_gpu, on_device
from tests.trainer._weightings import WEIGHTINGS

pytestmark = [*for_gpu, pytest.mark.filterwarnings("default")]  # the compiler's own are nobody's business here

STEPS = 20
# compiling takes long: first one that learns, one of buffers alone, one that breaks where it splits features, and one
# that breaks where it is told the epoch; the others are slow
FIRST = ["UncertaintyWeighting", "AnalyticUncertaintyWeighting", "GradientBalancing", "DynamicWeightAverage"]
OTHERS = [name for name in WEIGHTINGS if name not in FIRST]
CELLS = [(name, mode) for name in (*FIRST, *OTHERS) for mode in ("default", "reduce-overhead")]  # that: CUDA graphs


class Stepped(Owning):
    def train_dataloader(self):
        return in_a_row(STEPS)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameter_groups(lr=1e-2))


def fit(weighting, mode=None):
    torch.manual_seed(0)
    net, monitor = Stepped(WEIGHTINGS[weighting]()), UncertaintyMonitor(table=False)
    how = {"backend": "aot_eager"} if REHEARSED else {"mode": mode}
    with on_device():
        fitting = trainer(accelerator=ACCELERATOR, max_epochs=1, callbacks=[monitor], log_every_n_steps=5)
        fitting.fit(net if mode is None else torch.compile(net, **how))
    return tensors(net.cpu()), monitor.history.rows


@pytest.mark.parametrize(
    ("weighting", "mode"),
    [pytest.param(*cell, id="-".join(cell), marks=[pytest.mark.slow] * (cell[0] not in FIRST)) for cell in CELLS],
)
def test_a_compiled_fit_gives_the_numbers_of_an_eager_one(weighting, mode, record_property):
    torch._dynamo.reset()
    counters.clear()
    state, rows = fit(weighting, mode)
    counts = {name: count for name, count in counters["inductor"].items() if "cudagraph" in name}
    record_property(f"{weighting}, {mode}: graphs", counters["stats"]["unique_graphs"])
    record_property(f"{weighting}, {mode}: CUDA graphs", counts)
    torch._dynamo.reset()
    expected, expected_rows = fit(weighting)
    torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert len(rows) == len(expected_rows) == STEPS // 5
    for row, other in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-4)
