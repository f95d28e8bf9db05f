"""Warm-ups of every weighting in a fit."""

import copy

import pytest
import torch

from lightning_uncertainty import UncertaintyMonitor, UncertaintyWarmUp
from tests._nets import Owning, dicts, trainer
from tests.trainer._weightings import LEARNT, WEIGHTINGS

STEPS = 6


class Net(Owning):
    """Keeps the weights that its steps would have without a blend."""

    def __init__(self, weighting):
        super().__init__(weighting)
        self.own, self.pulls = [], []

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.pulls.append(self.task_weighting.trunk_weights(torch.ones(2)))

    def weigh(self, losses, stage=None):
        twin = copy.deepcopy(self.task_weighting)
        twin.blend_from(None)
        twin.start_epoch(self.current_epoch)
        means = torch.stack([total / count for total, count in losses.values()]).detach()
        self.own.append(twin(means, torch.ones(2, dtype=torch.bool)).weights)
        return super().weigh(losses, stage)


def fit(weighting, warm_up):
    """Return the monitor's rows, the weights without a blend, and by what gradients were weighed on top."""
    monitor, net = UncertaintyMonitor(table=False), Net(WEIGHTINGS[weighting]())
    trainer(max_epochs=3, callbacks=[monitor, warm_up]).fit(net, dicts(128, 32))  # enough labels for σ to start at once
    return monitor.history.rows, net.own, net.pulls


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_fixed_weights_give_way_to_the_own(weighting):
    rows, own, pulls = fit(weighting, UncertaintyWarmUp(steps=STEPS, blend_from={"depth": 0.3}))
    assert len(rows) == len(own) == 12
    for step, row in enumerate(rows):
        share = min(step / STEPS, 1.0)
        expected = ((1 - share) * torch.tensor([0.3, 1.0]) + share * own[step]) * pulls[step]
        torch.testing.assert_close(torch.tensor([row["weight/depth"], row["weight/kind"]]), expected)


@pytest.mark.parametrize("weighting", [*LEARNT, "GradientBalancing"])
def test_sigma_is_held(weighting):
    rows, _, _ = fit(weighting, UncertaintyWarmUp(steps=STEPS))
    for task in ("depth", "kind"):
        sigma = [row[f"sigma/{task}"] for row in rows]
        assert len(set(sigma[: STEPS + 1])) == 1
        assert len(set(sigma[STEPS:])) == len(rows) - STEPS
