"""What the mixin and `UncertaintyMonitor` add to a Lightning training step, and what logging by `log_dict` adds."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _measure import begin, differences, estimate, interleave, judge, ratios, table
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_uncertainty import MultiTaskMixin
from lightning_uncertainty.callbacks import UncertaintyMonitor

TASKS = ("depth", "normals", "albedo")
EVERY = 50
STEPS = EVERY  # timed in a fit, after as many
RESNET_STEPS = 2  # timed in a fit, after the first

PLAIN, WEIGHED, MONITORED, LOGGED = "plain sum", "mixin", "mixin + monitor", "plain sum + `log_dict` on every step"
RESNET = "ResNet-18"


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out))
        self.two = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        fits = channels == out and stride == 1
        project = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.shortcut = nn.Identity() if fits else project

    def forward(self, x: Tensor) -> Tensor:
        return (self.two(self.one(x).relu()) + self.shortcut(x)).relu()


def resnet18() -> nn.Sequential:
    """Return the layout of He et al., CVPR 2016, up to its 512 pooled features."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
    blocks = [block for i, o, stride in widths for block in (Block(i, o, stride), Block(o, o, 1))]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Plain(LightningModule):
    """A hand-written sum of three losses."""

    def __init__(self, trunk: nn.Module, features: int, log: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({name: nn.Linear(features, 1) for name in TASKS})
        self.logs = log

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, target = batch
        features = self.trunk(x)
        return {name: F.mse_loss(head(features), target) for name, head in self.heads.items()}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        if self.logs:  # as many scalars as loss, sigma and weight of each task; making the latter two is left out
            values = {name: loss.detach() for name, loss in losses.items()}
            self.log_dict({f"{key}/{name}": v for key in ("loss", "sigma", "weight") for name, v in values.items()})
        return sum(losses.values())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class Mixed(MultiTaskMixin, Plain):
    """The same model, uncertainty-weighted."""

    def __init__(self, trunk: nn.Module, features: int) -> None:
        super().__init__(trunk, features)
        self.register_tasks(dict.fromkeys(TASKS, "gaussian"))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.weigh(self.losses(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameter_groups(lr=1e-4))


class Stopwatch(Callback):
    """CPU time between the ends of two steps."""

    def __init__(self, first: int, steps: int) -> None:
        self.first, self.last, self.steps = first, first + steps, steps
        self.microseconds = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 in (self.first, self.last):
            self.microseconds = 1e6 * time.process_time() / self.steps - self.microseconds


class TimedMonitor(UncertaintyMonitor):
    """A monitor that counts the CPU time of its hook, and how often the hook ran."""

    def __init__(self) -> None:
        super().__init__(table=False)
        self.seconds, self.calls = 0.0, 0

    def on_train_batch_end(self, *args: Any) -> None:
        start = time.process_time()
        super().on_train_batch_end(*args)
        self.seconds += time.process_time() - start
        self.calls += 1


def fit(
    module: LightningModule, logger: Any, data: DataLoader, stopwatch: Stopwatch, *callbacks: Callback, **options: Any
) -> float:
    """Return the microseconds of a step."""
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        limit_train_batches=stopwatch.last,
        logger=logger,
        log_every_n_steps=EVERY,
        callbacks=[stopwatch, *callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, data)
    return stopwatch.microseconds


def main() -> None:
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    seconds = begin("A Lightning training step", __doc__, 140.0, ["torch", "pytorch-lightning"])

    def batches(count: int, *shape: int) -> DataLoader:
        return DataLoader([(torch.randn(shape), torch.randn(shape[0], 1)) for _ in range(count)], batch_size=None)

    small, images = batches(EVERY + STEPS, 8, 4), batches(1 + RESNET_STEPS, 16, 3, 64, 64)
    hooks: dict[str, list[float]] = {"null": [], "CSV": []}

    with TemporaryDirectory() as folder:
        loggers: dict[str, Callable[[], Any]] = {"null": DummyLogger, "CSV": lambda: CSVLogger(folder)}

        def tiny(variant: str, logger: str) -> float:
            trunk, callbacks = nn.Linear(4, 8), [TimedMonitor()] if variant == MONITORED else []
            weighed = variant in (WEIGHED, MONITORED)
            module = Mixed(trunk, 8) if weighed else Plain(trunk, 8, log=variant == LOGGED)
            spent = fit(module, loggers[logger](), small, Stopwatch(EVERY, STEPS), *callbacks)
            hooks[logger] += [1e6 * monitor.seconds / monitor.calls for monitor in callbacks]
            return spent

        variants = [(variant, "null") for variant in (PLAIN, WEIGHED, MONITORED, LOGGED)] + [(MONITORED, "CSV")]
        samplers = {key: (lambda key=key: tiny(*key)) for key in variants}
        samplers[RESNET, "null"] = lambda: fit(
            Plain(resnet18(), 512), DummyLogger(), images, Stopwatch(1, RESNET_STEPS)
        )
        for key in variants:  # to warm up
            tiny(*key)
        for values in hooks.values():
            values.clear()
        samples = interleave(samplers, seconds)

    resnet = samples[RESNET, "null"]
    added = {key: differences(samples[key], samples[PLAIN, "null"]) for key in variants[1:]}
    print(
        f"Microseconds of a step with {len(TASKS)} tasks, {len(resnet)} rounds; `log_every_n_steps={EVERY}`. The share "
        f"is that of a ResNet-18 step with {len(TASKS)} heads, 16 images of 3x64x64: "
        f"{estimate(resnet).text()} µs in the same rounds.\n"
    )
    rows = []
    for key in variants:
        own = [key[0], key[1], estimate(samples[key]).text()]
        if key in added:
            percent = estimate(100 * share for share in ratios(added[key], resnet))
            own += [estimate(added[key]).text(), percent.text(2)]
            own.append(judge(percent, at_most=1.0) if key[0] == MONITORED else "")
        rows.append(own if key in added else [*own, "", "", ""])
    table(["", "logger", "µs / step", "µs added", "% of ResNet-18", "claim: at most 1 %"], rows)

    by_log_dict = added[LOGGED, "null"]
    print(
        "The monitor's own hook, µs / step over all steps of those fits, against what `self.log_dict` of "
        f"{3 * len(TASKS)} scalars adds on every step ({estimate(by_log_dict).text()} µs); the last column is the "
        "difference of the fits with and without the monitor.\n"
    )
    rows = []
    for logger, spent in hooks.items():
        ratio = estimate(ratios(spent, by_log_dict))
        apart = differences(samples[MONITORED, "null"], samples[WEIGHED, "null"]) if logger == "null" else []
        rows.append(
            [
                f"`on_train_batch_end`, {logger} logger",
                estimate(spent).text(1),
                ratio.text(4),
                judge(ratio, at_most=0.01),
                estimate(apart).text(1) if apart else "",
            ]
        )
    table(["", "µs / step", "/ `log_dict`", "claim: at most 0.01", "fits"], rows)


if __name__ == "__main__":
    main()
