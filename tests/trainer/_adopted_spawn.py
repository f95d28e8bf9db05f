"""An adopted module whose Trainer starts the processes itself."""

from __future__ import annotations

from pytorch_lightning.strategies import DDPStrategy

from tests._launch import RANKS, TIMEOUT
from tests.trainer._adopted import fit

PROCESSES = 1


def run(cells):
    return {cell: fit("log", strategy(), RANKS, before=cell == "before") for cell in cells}


def strategy():
    return DDPStrategy(start_method="spawn", timeout=TIMEOUT)
