"""Modules whose batches are dealt out to the ranks, unequally labelled."""

from __future__ import annotations

from contextlib import ExitStack
from unittest.mock import patch

import torch
import torch.distributed
from pytorch_lightning import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import Accuracy, MeanAbsoluteError

from lightning_uncertainty import MultiTaskMixin, Task, masked_sum
from lightning_uncertainty.weightings import Weighting
from tests._launch import RANKS
from tests._nets import tensors

STEPS = 20
BATCH = 12  # of all ranks together
COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce", "reduce_scatter_tensor")

Rows = dict[str, torch.Tensor]


def batch_of(step: int) -> Rows:
    """Twelve rows; rank 0 has most labels of `depth`, of `kind` none, one rank's or all, `width` comes and goes."""
    rng = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 4, generator=rng)
    depth = 3 * x[:, 0] + torch.randn(BATCH, generator=rng)
    width = x[:, 1] - x[:, 2] + torch.randn(BATCH, generator=rng)
    kind = x[:, :3].argmax(1)
    depth[1:10:2] = torch.nan
    depth[8:] = torch.nan
    width[[slice(2, 9), slice(0, 6), slice(6, 12)][step % 3]] = torch.nan
    kind[[slice(6, 12), slice(0, 0), slice(0, 12), slice(0, 6), slice(1, 5)][step % 5]] = -100
    return {"x": x, "depth": depth, "width": width, "kind": kind}


def shares(batch: Rows, step: int) -> list[Rows]:
    """Six rows for each rank; of the last step ten and two, as the end of an epoch may leave them."""
    cut = 10 if step == STEPS - 1 else 6
    return [{name: column[rows] for name, column in batch.items()} for rows in (slice(cut), slice(cut, None))]


class Dealt(MultiTaskMixin, LightningModule):
    """Three tasks that own their losses; on one process it sees what the ranks see together.

    `batches` are by step, all shares of each; `optimizer` is the name of a class in torch.optim. It makes sure that
    each micro-batch takes one collective of ours, and one more where gradients are balanced or metrics are heard, and
    that at the end of a fit the ranks hold the same bits.
    """

    def __init__(self, weighting: Weighting, optimizer: str = "SGD", **tasks: str) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        self.register_tasks(
            {
                "depth": Task("gaussian", head=nn.Linear(8, 1), metrics=MeanAbsoluteError()),
                "width": Task("gaussian", head=nn.Linear(8, 1)),
                "kind": Task("categorical", head=nn.Linear(8, 3), metrics=Accuracy("multiclass", num_classes=3)),
            },
            weighting=weighting,
            **tasks,
        )
        self.optimizer_name = optimizer
        self.batches = [shares(batch_of(step), step) for step in range(STEPS)]

    def own(self, parts: list[Rows]) -> list[Rows]:
        return parts if self.trainer.world_size == 1 else [parts[self.global_rank]]

    def train_dataloader(self):
        return DataLoader([self.own(parts) for parts in self.batches], batch_size=None)

    def val_dataloader(self):  # an uneven number of batches: rank 1 has one more
        return DataLoader(self.train_dataloader().dataset[: 3 + self.global_rank], batch_size=None)

    def training_step(self, parts, batch_idx):
        return self.step(parts, "train")

    def validation_step(self, parts, batch_idx):
        self.step(parts, "val")

    def step(self, parts, stage):
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return self.task_step(self.trunk(batch["x"]).tanh(), batch, stage)

    def configure_optimizers(self):
        return getattr(torch.optim, self.optimizer_name)(self.parameter_groups(lr=1e-2))

    skipped_before = 0

    def all_reduces(self, batch_idx):
        """How many a micro-batch takes: of losses, and of gradients or their Gramian."""
        weighting = self.task_weighting
        due = self.task_splitter.balances(weighting) and batch_idx % getattr(weighting, "every_n_steps", 1) == 0
        return 1 + bool(weighting.kpi_metrics()) + (due and self.skipped_steps == self.skipped_before)

    def on_train_start(self):
        assert self.trainer.world_size == self.trainer.num_devices

    def on_train_batch_start(self, batch, batch_idx):
        self.counted, self.skipped_before = ExitStack(), self.skipped_steps
        originals = {name: getattr(torch.distributed, name) for name in COLLECTIVES}
        self.calls = [
            self.counted.enter_context(patch.object(torch.distributed, name, side_effect=original))
            for name, original in originals.items()
        ]

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.counted.close()
        if self.trainer.world_size > 1:
            counts = [call.call_count for call in self.calls]
            assert counts == [self.all_reduces(batch_idx)] + [0] * (len(COLLECTIVES) - 1), dict(
                zip(COLLECTIVES, counts, strict=True)
            )
        del self.counted, self.calls

    def on_train_end(self):
        if self.trainer.world_size > 1:
            state = {**tensors(self), **optimizer_tensors(self.trainer.optimizers[0])}
            for name, tensor in state.items():
                both = [torch.empty_like(tensor) for _ in range(RANKS)]
                torch.distributed.all_gather(both, tensor)
                first, second = (each.reshape(-1).view(torch.uint8) for each in both)
                assert torch.equal(first, second), f"ranks disagree on {name}"


class PlainMeans(Dealt):
    """It computes its losses, as means, which count alike on every rank."""

    def step(self, parts, stage):
        outputs = self.task_outputs(self.trunk(torch.cat([part["x"] for part in parts])).tanh())
        own = [output.split([len(part["x"]) for part in parts]) for output in outputs.values()]
        means = [self.means(part["x"], *rows) for part, *rows in zip(parts, *own, strict=True)]
        if len(parts) == 1:
            return self.weigh(means[0], stage)
        return self.weigh({task: sum(mean[task] for mean in means) / len(means) for task in means[0]}, stage)

    def means(self, x, depth, width, kind):
        return {
            "depth": F.mse_loss(depth[:, 0], 3 * x[:, 0]),
            "width": F.mse_loss(width[:, 0], x[:, 1] - x[:, 2]),
            "kind": F.cross_entropy(kind, x[:, :3].argmax(1)),
        }


class Regularised(Dealt):
    """It logs its total, adds to it, and returns it in a dict."""

    def training_step(self, parts, batch_idx):
        total = super().training_step(parts, batch_idx)
        self.log("total", total, batch_size=1)
        return {"loss": total + 0.01 * self.trunk.weight.square().sum()}


class SkippedHeads(Dealt):
    """It computes its losses; None, or NaN of no labels, stands for a task without labels, whose head does not run."""

    def step(self, parts, stage):
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        features = self.split_features(self.trunk(batch["x"]).tanh())
        pairs = {task: self.pair(task, head, features[task], batch) for task, head in self.task_heads.items()}
        return self.weigh(pairs, stage)

    def pair(self, task, head, features, batch):
        label = batch[task]
        observed = label >= 0 if task == "kind" else ~label.isnan()
        if not observed.any():
            return (features.new_tensor(torch.nan), 0.0) if task == "width" else None
        if task == "kind":
            return F.cross_entropy(head(features), label, reduction="sum"), observed.sum()
        return masked_sum((head(features)[:, 0] - label.nan_to_num()).square(), observed)


class Together(Dealt):
    """Several that train side by side as parts of one, so that one launch of processes does for all."""

    def __init__(self, first: Weighting, others: dict[str, Dealt]) -> None:
        super().__init__(first)
        self.others = nn.ModuleDict(others)

    def all_reduces(self, batch_idx):
        return super().all_reduces(batch_idx) + sum(net.all_reduces(batch_idx) for net in self.others.values())

    def training_step(self, parts, batch_idx):
        return sum((net.step(parts, "train") for net in self.others.values()), self.step(parts, "train"))

    def parameter_groups(self, lr, **options):
        others = [group for net in self.others.values() for group in net.parameter_groups(lr, **options)]
        theirs = {id(parameter) for parameter in self.others.parameters()}
        own = super().parameter_groups(lr, **options)
        own[0]["params"] = [parameter for parameter in own[0]["params"] if id(parameter) not in theirs]
        return own + others


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Rows:
    """What an optimizer remembers, as Adam's moments and steps, by position and name."""
    state = optimizer.state_dict()["state"]
    return {
        f"{i}.{name}": value.clone() for i, own in state.items() for name, value in own.items() if value is not None
    }
