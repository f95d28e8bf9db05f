"""A plain script whose Trainer starts the processes itself, and what is left when they have ended."""

import sys
from pathlib import Path

import torch
from pytorch_lightning.loggers import CSVLogger

from tests.trainer._ddp import VARIANTS, fit_spawned

if __name__ == "__main__":
    out = Path(sys.argv[1])
    logger = CSVLogger(out.parent, name=None, version="csv")
    net, fitted, states = fit_spawned(list(VARIANTS), logger=logger)
    torch.save({"fitted": fitted, "states": states, "sigma": net.sigma()}, out)
