"""What each of two ranks runs: every architecture under plain DDP, in one process group."""

import sys

import torch
import torch.distributed

from tests._nets import tensors, trainer
from tests.architectures._architectures import CELLS, Scenes, batch_of, make

STEPS = 3


class Halved(Scenes):
    """Each of two ranks has half of every batch; normalisation is by running statistics, as batches differ."""

    def training_step(self, batch, batch_idx):
        self.net.eval()
        if self.trainer.world_size == 2:
            batch = {key: value.chunk(2)[self.global_rank] for key, value in batch.items()}
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameter_groups(lr=1e-2))


def fit(name, tasks, devices):
    """Return the state after a few steps in float64."""
    net = Halved(make(name, tasks), tasks, batches=[batch_of(seed) for seed in range(STEPS)]).double()
    options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False} if devices == 2 else {}
    trainer(max_epochs=1, precision="64-true", **options).fit(net)
    return tensors(net)


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    found = {(name, tasks): fit(name, tasks, devices=2) for name, tasks in CELLS}
    if torch.distributed.get_rank() == 0:
        torch.save(found, sys.argv[1])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
