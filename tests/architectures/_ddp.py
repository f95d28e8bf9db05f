"""Every architecture under plain DDP, on two processes and on one."""

import torch

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


EVERY = {f"{name}, {tasks}": (name, tasks) for name, tasks in CELLS}


def run(cells):
    return {cell: fit(*EVERY[cell], devices=2) for cell in cells}
