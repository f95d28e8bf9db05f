"""One loader for each task: what a step looks like, and that it trains what the batches say."""

import math
from itertools import cycle, zip_longest

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import CombinedLoader
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import MeanAbsoluteError

from lightning_uncertainty import MultiTaskMixin, Task, UncertaintyMonitor, UncertaintyWeighting
from tests._nets import Rows, trainer

LR, OWN_LR = 0.05, 0.2


class Net(MultiTaskMixin, LightningModule):
    """Every task has inputs of its own."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        depth = Task("gaussian", head=nn.Linear(8, 1), metrics=MeanAbsoluteError())
        tasks = {"depth": depth, "kind": Task("categorical", head=nn.Linear(8, 3))}
        self.register_tasks(tasks, weighting=UncertaintyWeighting(start=0.0, memory=None))

    def training_step(self, batch, batch_idx):
        losses = dict.fromkeys(self.task_heads)  # None where a loader has run out
        for task, part in batch.items():
            if part is not None:
                output = self.task_heads[task](self.trunk(part["x"]))
                losses |= self.task_losses({task: output}, part)
        return self.weigh(losses)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        labels = dict.fromkeys(self.task_heads) | batch  # None for the tasks of the other loaders
        self.task_step(self.trunk(batch["x"]), labels, "val")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameter_groups(lr=LR, log_variance_lr=OWN_LR))


def loader_of(task, batches):
    x = torch.randn(8 * batches, 4)
    labels = 3 * x[:, 0] if task == "depth" else x[:, :3].argmax(1)
    return DataLoader(Rows({"x": x, task: labels}), batch_size=8)


@pytest.fixture
def loaders():
    torch.manual_seed(1)
    return {"depth": loader_of("depth", 5), "kind": loader_of("kind", 2)}


def pairs_of(mode, depth, kind):
    """The batches of one epoch, by the standard library."""
    pair = {"min_size": zip, "max_size": zip_longest, "max_size_cycle": lambda a, b: zip(a, cycle(b), strict=False)}
    return list(pair[mode](depth, kind))


def losses_of(net, depth, kind):
    losses = {}
    if depth is not None:
        losses["depth"] = F.mse_loss(net.task_heads["depth"](net.trunk(depth["x"]))[:, 0], depth["depth"])
    if kind is not None:
        losses["kind"] = F.cross_entropy(net.task_heads["kind"](net.trunk(kind["x"])), kind["kind"])
    return losses


def by_hand(net, pairs, epochs):
    """Train with Kendall's sum written out, as published; return log-variances."""
    s = {"depth": torch.zeros((), requires_grad=True), "kind": torch.zeros((), requires_grad=True)}
    factor = {"depth": 0.5, "kind": 1.0}
    network = [*net.trunk.parameters(), *net.task_heads.parameters()]
    optimizer = torch.optim.SGD([{"params": network}, {"params": list(s.values()), "lr": OWN_LR}], lr=LR)
    for pair in pairs * epochs:
        losses = losses_of(net, *pair)
        optimizer.zero_grad()
        sum(factor[task] * (-s[task]).exp() * loss + s[task] / 2 for task, loss in losses.items()).backward()
        optimizer.step()
    return {task: value.item() for task, value in s.items()}


@pytest.mark.parametrize(("mode", "steps"), [("min_size", 2), ("max_size", 5), ("max_size_cycle", 5)])
def test_a_loader_for_each_task_trains_what_its_batches_say(mode, steps, loaders):
    net, other = Net(), Net()
    other.load_state_dict(net.state_dict())
    monitor = UncertaintyMonitor(table=False)
    trainer(callbacks=[monitor]).fit(net, CombinedLoader(loaders, mode))
    s = by_hand(other, pairs_of(mode, *loaders.values()), epochs=2)
    weighting = net.task_weighting
    assert dict(zip(weighting.tasks, (weighting.start + weighting.offset).tolist(), strict=True)) == pytest.approx(s)
    torch.testing.assert_close(net.trunk.weight, other.trunk.weight)
    there = ["loss/kind" in row for row in monitor.history.rows]
    assert there == ([mode != "max_size" or step < 2 for step in range(steps)] * 2)


def test_the_trainer_combines_a_dict_of_loaders_itself(loaders):
    net, other = Net(), Net()
    other.load_state_dict(net.state_dict())
    trainer(max_epochs=1).fit(net, loaders)
    by_hand(other, pairs_of("max_size_cycle", *loaders.values()), epochs=1)
    torch.testing.assert_close(net.trunk.weight, other.trunk.weight)


def test_validation_takes_the_loaders_one_after_the_other(loaders):
    net, fit = Net(), trainer(max_epochs=1)
    fit.fit(net, loaders, loaders)
    with torch.no_grad():
        whole = [
            {key: torch.cat([batch[key] for batch in loader]) for key in ("x", task)}
            for task, loader in loaders.items()
        ]
        losses = losses_of(net, *whole)
        error = (net.task_heads["depth"](net.trunk(whole[0]["x"]))[:, 0] - whole[0]["depth"]).abs().mean()
    logged = {key: value.item() for key, value in fit.callback_metrics.items()}
    assert logged == pytest.approx(
        {
            "val/depth/loss": losses["depth"].item(),
            "val/kind/loss": losses["kind"].item(),
            "val/depth/MeanAbsoluteError": error.item(),
            "val/balanced_loss": math.log(losses["depth"] * losses["kind"]) / 2,
        }
    )


def test_a_loader_that_runs_out_leaves_its_sigma_and_its_head_alone(loaders):
    net = Net()
    net.training_step({task: next(iter(loader)) for task, loader in loaders.items()}, 0)
    head = net.task_heads["kind"].weight
    net.zero_grad()
    net.training_step({"depth": next(iter(loaders["depth"])), "kind": None}, 1).backward()
    assert head.grad is None
    assert net.task_weighting.offset.grad[1] == 0.0
