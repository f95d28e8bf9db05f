"""A module whose batches are dealt out to the ranks, unequally labelled, and the program that each rank runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed
from torch import nn
from torch.utils.data import DataLoader

from lightning_uncertainty import AnalyticUncertaintyWeighting, FixedWeighting, UncertaintyMonitor, UncertaintyWeighting
from lightning_uncertainty.weightings import Weighting
from tests._nets import Owning, tensors, trainer

STEPS = 20
BATCH = 12  # of all ranks together


def batch_of(step: int) -> dict[str, torch.Tensor]:
    """Twelve rows; rank 0 of two has most labels of `depth`, and of `kind` none, one rank's, or all."""
    rng = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 4, generator=rng)
    depth = 3 * x[:, 0] + torch.randn(BATCH, generator=rng)
    kind = x[:, :3].argmax(1)
    depth[1:10:2] = torch.nan
    depth[8:] = torch.nan
    absent = {0: slice(6, 12), 1: slice(0, 0), 2: slice(0, 12), 3: slice(0, 6), 4: slice(1, 5)}[step % 5]
    kind[absent] = -100
    return {"x": x, "depth": depth, "kind": kind}


class Dealt(Owning):
    """Owning, fed by `batch_of`; `optimizer` is the name of a class in torch.optim."""

    def __init__(self, weighting: Weighting, optimizer: str = "SGD") -> None:
        super().__init__(weighting)
        self.optimizer_name = optimizer
        self.reductions = 0

    def train_dataloader(self):
        share = BATCH // self.trainer.world_size
        own = slice(self.global_rank * share, (self.global_rank + 1) * share)
        batches = [{name: column[own] for name, column in batch_of(step).items()} for step in range(STEPS)]
        return DataLoader(batches, batch_size=None)

    def val_dataloader(self):  # an uneven number of batches: rank 1 has one more
        batches = self.train_dataloader().dataset[: 3 + self.global_rank]
        return DataLoader(batches, batch_size=None)

    def configure_optimizers(self):
        return getattr(torch.optim, self.optimizer_name)(self.parameter_groups(lr=1e-2))

    def on_fit_start(self):
        all_reduce = torch.distributed.all_reduce

        def counted(*args, **kwargs):
            self.reductions += 1
            return all_reduce(*args, **kwargs)

        self.original, torch.distributed.all_reduce = all_reduce, counted

    def on_train_batch_start(self, batch, batch_idx):
        self.reductions = 0

    def on_before_zero_grad(self, optimizer):
        if self.trainer.world_size > 1:
            assert self.reductions == 1, f"{self.reductions} all-reduces in a step"

    def on_fit_end(self):
        torch.distributed.all_reduce = self.original
        del self.original

    def on_train_end(self):
        if self.trainer.world_size > 1:
            for tensor in nn.ModuleList([self.task_weighting]).state_dict().values():
                if isinstance(tensor, torch.Tensor):
                    both = [torch.empty_like(tensor) for _ in range(2)]
                    torch.distributed.all_gather(both, tensor)
                    assert torch.equal(*both), "ranks disagree"


CASES = {
    "uncertainty, SGD, float32": (UncertaintyWeighting, {}, "SGD", "32-true", 1e-6),
    "uncertainty, SGD, float64": (UncertaintyWeighting, {}, "SGD", "64-true", 1e-12),
    "uncertainty, Adam, float64": (UncertaintyWeighting, {}, "Adam", "64-true", 1e-12),
    "uncertainty from 0, SGD, float64": (UncertaintyWeighting, {"start": 0.0}, "SGD", "64-true", 1e-12),
    "analytic, SGD, float64": (AnalyticUncertaintyWeighting, {}, "SGD", "64-true", 1e-12),
    "fixed, SGD, float64": (FixedWeighting, {}, "SGD", "64-true", 1e-12),
}


def fit(case: str, **options) -> tuple[Dealt, dict[str, float]]:
    """Train a case from seed 0; return the module and what was logged."""
    kind, arguments, optimizer, precision, _ = CASES[case]
    torch.manual_seed(0)
    net = Dealt(kind(**arguments), optimizer)
    monitor = UncertaintyMonitor(table=False)
    options = {"precision": precision, "use_distributed_sampler": False, "num_sanity_val_steps": 0, **options}
    fitted = trainer(max_epochs=1, callbacks=[monitor], **options)
    fitted.fit(net)
    return net, {key: value.item() for key, value in fitted.callback_metrics.items()}


def run_two(out: Path) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, float]]]:
    """Run every case on two processes; return tensors and logged values by case."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    root = str(Path(__file__).parents[1])
    processes = []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        environment = {**os.environ, **common, **own, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests._ranks", str(out)]
        with (out.parent / f"rank{rank}.log").open("w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=150) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = "\n".join((out.parent / f"rank{rank}.log").read_text() for rank in range(2))
    assert codes == [0, 0], logs
    return torch.load(out)


if __name__ == "__main__":
    results = {}
    for case in CASES:
        net, logged = fit(case, strategy="ddp", devices=2)
        results[case] = tensors(net), logged
    if torch.distributed.get_rank() == 0:
        torch.save(results, sys.argv[1])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
