"""A module that knows what its tasks' gradients really are."""

from __future__ import annotations

import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_uncertainty import GradientConflictMonitor, MultiTaskMixin, Task, UncertaintyWeighting
from lightning_uncertainty.balancing import GradientBalancing
from tests._launch import RANKS
from tests._nets import trainer

NAMES = ("depth", "width", "kind")
START = {"depth": 1.0, "width": -0.5, "kind": 0.3}
ROWS = 12  # of all ranks together


def batch_of(step: int, missing: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """Twelve rows, of whose labels rank 0 of two has most."""
    rng = torch.Generator().manual_seed(step)
    x = torch.randn(ROWS, 4, generator=rng, dtype=torch.float64)
    depth = 3 * x[:, :1] + torch.randn(ROWS, 1, generator=rng, dtype=torch.float64)
    width = x[:, 1:2] - 2 * x[:, :1]
    depth[8:] = torch.nan
    batch = {"x": x, "depth": depth, "width": width, "kind": x[:, :3].argmax(1)}
    for name in missing:
        batch[name] = torch.full_like(batch[name], -100 if name == "kind" else torch.nan)
    return batch


class Watched(MultiTaskMixin, LightningModule):
    """Three tasks on one trunk; `jacobians` has every batch's gradients of weighted losses, found one by one."""

    def __init__(self, weighting=None, batches=None):
        super().__init__()
        torch.manual_seed(1)
        self.trunk = nn.Linear(4, 8)
        sizes = {"depth": ("gaussian", 1), "width": ("laplace", 1), "kind": ("categorical", 3)}
        tasks = {name: Task(likelihood, head=nn.Linear(8, size)) for name, (likelihood, size) in sizes.items()}
        self.register_tasks(tasks, weighting=weighting or UncertaintyWeighting(START))
        self.double()
        self.batches = batches or [batch_of(step) for step in range(10)]
        self.jacobians = []

    def train_dataloader(self):
        return DataLoader(range(len(self.batches)), batch_size=None)  # one that resumes in the middle

    def training_step(self, batch, batch_idx):
        share = ROWS // self.trainer.world_size
        own = slice(self.global_rank * share, (self.global_rank + 1) * share)
        batch = {name: column[own] for name, column in self.batches[batch_idx].items()}
        features = self.trunk(batch["x"]).tanh()
        if self.trainer.world_size == 1:
            self.jacobians.append(self.jacobian(features, batch))
        return self.task_step(features, batch, "train")

    def jacobian(self, features, batch):
        """The gradients `[T, F]` by a backward pass for each task."""
        weighting = getattr(self.task_weighting, "weighting", self.task_weighting).eval()
        leaf = features.detach().requires_grad_()
        pairs = self.task_losses({name: head(leaf) for name, head in self.task_heads.items()}, batch)
        losses = torch.stack([total / count if count else 0 * total for total, count in pairs.values()])
        present = torch.stack([count > 0 for _, count in pairs.values()])
        weights = weighting(losses.detach(), present).weights
        weighting.train()
        rows = [torch.autograd.grad(w * loss, leaf, retain_graph=True) for w, loss in zip(weights, losses, strict=True)]
        return torch.stack([row.reshape(-1) for (row,) in rows])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameter_groups(lr=1e-2))


CASES = {
    "plain": (lambda: UncertaintyWeighting(START), 1),
    "accumulated": (lambda: UncertaintyWeighting(START), 2),
    "balanced": (lambda: GradientBalancing("mgda", UncertaintyWeighting(START)), 2),
    "parameters": (lambda: GradientBalancing("mgda", on="parameters", every_n_steps=2), 1),
}


def fit(case, **options):
    """Train a case and return what its monitor kept."""
    make, accumulated = CASES[case]
    monitor = GradientConflictMonitor(2)
    options = {"max_epochs": 1, "callbacks": [monitor], "accumulate_grad_batches": accumulated, **options}
    trainer(**options).fit(Watched(make()))
    return monitor.state_dict()


def run(cells):
    return {case: fit(case, strategy="ddp", devices=RANKS, use_distributed_sampler=False) for case in cells}
