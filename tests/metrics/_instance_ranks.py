"""InstanceAP of two ranks, of which one may have seen no image."""

from __future__ import annotations

import torch

from lightning_uncertainty.metrics import InstanceAP
from tests.metrics.test_instance_ap import draw, updated

SEEN = {"both": ((0, 1, 2), (3,)), "one": ((0, 1, 2, 3), ()), "other": ((), (0, 1, 2, 3))}


def run(cells: list[str]):
    rank = torch.distributed.get_rank()
    found = {}
    for cell in cells:
        metric = torch.nn.ModuleDict({"metric": InstanceAP()}).to(torch.bfloat16)["metric"]
        found[cell] = updated(metric, [draw(seed) for seed in SEEN[cell][rank]]).compute()
    return found
