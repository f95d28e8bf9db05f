"""What `weigh` adds to a training step on a GPU: ResNet-18 with three heads, eager and compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from _measure import begin, differences, estimate, interleave, judge, ratios, table
from lightning_step import TASKS, Mixed, Plain, resnet18
from torch import nn

IMAGES = (64, 3, 128, 128)
STEPS = 20  # between two events

PLAIN, WEIGHED = "plain sum", "mixin"


def sampler(module: Plain, compiled: bool) -> Callable[[], float]:
    """Return what gives the microseconds of a step, by the device's own clock."""
    module = module.cuda()
    optimizer = module.configure_optimizers()
    batch = torch.randn(IMAGES, device="cuda"), torch.randn(IMAGES[0], 1, device="cuda")
    step: Callable[..., torch.Tensor] = torch.compile(module.training_step) if compiled else module.training_step

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = step(batch, 0)
        loss.backward()
        optimizer.step()

    def sample() -> float:
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(STEPS):
            run()
        last.record()
        torch.cuda.synchronize()
        return 1000 * first.elapsed_time(last) / STEPS

    sample()  # to warm up, and to compile
    return sample


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a GPU: found none")
    clock = (
        f"Time of {torch.cuda.get_device_name()} between events, {STEPS} steps of batches {list(IMAGES)} in bfloat16"
    )
    seconds = begin("A training step on a GPU", __doc__, 60.0, ["torch"], clock)
    kinds: dict[str, Callable[[nn.Module, int], Plain]] = {PLAIN: Plain, WEIGHED: Mixed}
    keys = [(kind, compiled) for compiled in (False, True) for kind in kinds]
    samples = interleave({key: sampler(kinds[key[0]](resnet18(), 512), key[1]) for key in keys}, seconds)
    rows = []
    for kind, compiled in keys:
        own, plain = samples[kind, compiled], samples[PLAIN, compiled]
        row = [f"{kind}{', compiled' if compiled else ''}", estimate(own).text()]
        if kind == WEIGHED:
            ratio = estimate(ratios(own, plain))
            row += [estimate(differences(own, plain)).text(), ratio.text(3), judge(ratio, at_most=1.02)]
        rows.append(row if kind == WEIGHED else [*row, "", "", ""])
    table([f"{len(TASKS)} tasks", "us / step", "us added", "/ plain sum", "claim: at most 1.02"], rows)


if __name__ == "__main__":
    main()
