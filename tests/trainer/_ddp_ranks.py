"""What each of two ranks runs: every mode that needs no processes of its own, in one process group."""

import sys

import torch
import torch.distributed

from tests._ranks import Dealt
from tests.trainer._ddp import (
    CELLS,
    NONFINITE,
    TIMEOUT,
    WEIGHTINGS,
    fit_skipping,
    fit_two,
    messages,
    poison,
    strategy_of,
)

if __name__ == "__main__":
    torch.distributed.init_process_group("gloo", timeout=TIMEOUT)
    found = {(mode, weighting): fit_two(mode, weighting) for mode, weighting in CELLS if mode != "spawn"}
    for name, strategy in NONFINITE.items():
        for weighting in WEIGHTINGS:
            found["skipped", name, weighting] = fit_skipping(name, weighting)
            found["never", name, weighting] = fit_skipping(name, weighting, never=True)
        net = poison(Dealt(WEIGHTINGS["UncertaintyWeighting"]()), [11])
        found["raised", name] = messages(net, strategy=strategy_of(strategy), devices=2)
    net = Dealt(WEIGHTINGS["UncertaintyWeighting"](), on_nonfinite="skip_step")
    found["accumulated"] = messages(net, strategy="ddp", devices=2, accumulate_grad_batches=2)
    if torch.distributed.get_rank() == 0:
        torch.save(found, sys.argv[1])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
