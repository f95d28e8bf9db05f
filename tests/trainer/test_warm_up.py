"""Warm-ups of every weighting in a fit."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from lightning_uncertainty import UncertaintyMonitor, UncertaintyWarmUp
from tests._nets import Owning, dicts, trainer
from tests.trainer._weightings import WEIGHTINGS

LEARNT = ["UncertaintyWeighting", "BoundedUncertaintyWeighting", "ConstrainedUncertaintyWeighting"]
STEPS = 6


class Net(Owning):
    def weigh(self, losses, stage=None):
        self.means = torch.stack([total / count for total, count in losses.values()]).detach()
        return super().weigh(losses, stage)


class Own(Callback):
    """Keeps the weights that a step would have without a blend."""

    def __init__(self):
        self.weights = []

    def on_before_backward(self, trainer, pl_module, loss):
        with torch.no_grad():
            self.weights.append(pl_module.task_weighting(pl_module.means, torch.ones(2, dtype=torch.bool)).weights)


def fit(weighting, warm_up):
    """Return the monitor's rows, and what `Own` kept."""
    monitor, own = UncertaintyMonitor(table=False), Own()
    trainer(max_epochs=3, callbacks=[monitor, own, warm_up]).fit(Net(WEIGHTINGS[weighting]()), dicts())
    return monitor.history.rows, own.weights


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_fixed_weights_give_way_to_the_own(weighting):
    rows, own = fit(weighting, UncertaintyWarmUp(steps=STEPS, blend_from={"depth": 0.3}))
    assert len(rows) == len(own) == 12
    for step, row in enumerate(rows):
        share = min(step / STEPS, 1.0)
        expected = (1 - share) * torch.tensor([0.3, 1.0]) + share * own[step]
        torch.testing.assert_close(torch.tensor([row["weight/depth"], row["weight/kind"]]), expected)


@pytest.mark.parametrize("weighting", LEARNT)
def test_sigma_is_held(weighting):
    rows, _ = fit(weighting, UncertaintyWarmUp(steps=STEPS))
    for task in ("depth", "kind"):
        sigma = [row[f"sigma/{task}"] for row in rows]
        assert len(set(sigma[: STEPS + 1])) == 1
        assert len(set(sigma[STEPS:])) == len(rows) - STEPS
