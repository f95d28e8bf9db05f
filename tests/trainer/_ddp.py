"""The modes of data parallelism, each with every weighting, and with losses that are not finite; what ranks run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any
from warnings import catch_warnings, filterwarnings

import torch
import torch.distributed
from pytorch_lightning.strategies import DDPStrategy
from torchmetrics import Accuracy

from lightning_uncertainty import UncertaintyMonitor, UncertaintyWeighting
from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.weightings import DynamicTaskPrioritization, Weighting
from tests._launch import RANKS, TIMEOUT
from tests._nets import tensors, trainer
from tests._ranks import STEPS, Dealt, PlainMeans, Regularised, Rows, SkippedHeads, Together, optimizer_tensors
from tests.balancing._solvers import Inverse
from tests.trainer._weightings import BY_EPOCH, WEIGHTINGS

FIRST = "UncertaintyWeighting"
FIND_UNUSED = "ddp_find_unused_parameters_true"

VARIANTS: dict[str, Callable[[], Weighting]] = {
    **WEIGHTINGS,
    "UncertaintyWeighting(start)": lambda: UncertaintyWeighting(start=0.0),
    "UncertaintyWeighting(bounds)": lambda: UncertaintyWeighting(bounds={"depth": (-1.0, 0.5), "kind": (0.5, 1.0)}),
    "GradientBalancing(weighted)": lambda: GradientBalancing(Inverse(), heads="weighted"),
    "GradientBalancing(parameters)": lambda: GradientBalancing(Inverse(), on="parameters"),
    "GradientBalancing(sometimes)": lambda: GradientBalancing(Inverse(), on="parameters", every_n_steps=3),
    "UncertaintyWeighting(shared)": lambda: UncertaintyWeighting(shared=[["depth", "width"]]),
}
KPIS = {"kind": Accuracy("multiclass", num_classes=3), "depth": 2.0, "width": 2.0}
VARIANTS_OF: dict[str, dict[str, Callable[[], Weighting]]] = {  # in place of these, by mode
    "float32": {**VARIANTS, "DynamicTaskPrioritization(metric)": lambda: DynamicTaskPrioritization(KPIS)},
    "epochs": {name: VARIANTS[name] for name in BY_EPOCH},
    "evaluation_mode": {name: VARIANTS[name] for name in ("UncertaintyWeighting", "GradientBalancing")},
}


@dataclass(frozen=True)
class Mode:
    """How two processes train; one process trains so too, but for the strategy."""

    strategy: str | Callable[[], DDPStrategy] = "ddp"
    module: type[Dealt] = Dealt
    optimizer: str = "SGD"
    tolerance: float = 1e-12
    options: Mapping[str, Any] = field(default_factory=dict)  # of the Trainer
    training: bool = True  # the module's mode when the fit begins


MODES = {
    "ddp": Mode(),
    "find_unused": Mode(FIND_UNUSED),
    "static_graph": Mode(partial(DDPStrategy, static_graph=True)),
    "no_broadcast": Mode(partial(DDPStrategy, broadcast_buffers=False)),
    "spawn": Mode("ddp_spawn"),
    "clipping": Mode(options={"gradient_clip_val": 0.5}),
    "accumulation": Mode(options={"accumulate_grad_batches": 2}),
    "adam": Mode(optimizer="Adam"),
    "float32": Mode(tolerance=1e-6, options={"precision": "32-true"}),
    "means": Mode(module=PlainMeans),
    "skipped_heads": Mode(FIND_UNUSED, module=SkippedHeads),
    "epochs": Mode(options={"max_epochs": 3}),
    "evaluation_mode": Mode(training=False),
}
REPEATED = ("ddp", "static_graph", "skipped_heads", "accumulation")  # for variants of a class that has every mode
CELLS = [
    (mode, name)
    for mode in MODES
    for name in VARIANTS_OF.get(mode, VARIANTS)
    if mode in REPEATED or not name.startswith("GradientBalancing(")
]
NONFINITE = {
    "ddp": "ddp",
    "find_unused": FIND_UNUSED,
    "static_graph": partial(DDPStrategy, static_graph=True),
}
BAD = {
    0: (1, "depth"),
    1: (0, "kind"),
    7: (1, "kind"),
    11: (0, "depth"),
    STEPS - 1: (1, "depth"),
}  # by step: rank, task


@dataclass
class Fitted:
    """What a fit leaves behind."""

    state: Rows
    optimizer: Rows
    logged: dict[str, float]
    rows: int  # of the monitor's history


def fit(net: Dealt, **options: Any) -> Fitted:
    """Fit for one epoch."""
    monitor = UncertaintyMonitor(table=False)
    common = {"precision": "64-true", "use_distributed_sampler": False, "num_sanity_val_steps": 0, "max_epochs": 1}
    fitted = trainer(**{**common, "callbacks": [monitor], **options})
    fitted.fit(net)
    logged = {key: value.item() for key, value in fitted.callback_metrics.items()}
    optimizer = optimizer_tensors(fitted.optimizers[0]) if fitted.optimizers else {}
    return Fitted(tensors(net), optimizer, logged, len(monitor.history.rows))


def make(mode: str, weighting: str) -> Dealt:
    torch.manual_seed(0)
    own = MODES[mode]
    return own.module(VARIANTS_OF.get(mode, VARIANTS)[weighting](), own.optimizer).train(own.training)


def fit_two(mode: str, weighting: str, **options: Any) -> Fitted:
    strategy = strategy_of(MODES[mode].strategy)
    return fit(make(mode, weighting), strategy=strategy, devices=RANKS, **MODES[mode].options, **options)


def fit_spawned(weightings: list[str], **options: Any) -> tuple[Dealt, Fitted, dict[str, Rows]]:
    """Fit several in one launch; return the module that the caller has, what its fit left, and each one's state."""
    first, *others = weightings
    parts = {name: make("spawn", name) for name in others}
    torch.manual_seed(0)
    net = Together(VARIANTS[first](), parts).double()  # what comes back is cast to what the caller has
    strategy = DDPStrategy(start_method="spawn", timeout=TIMEOUT)  # what "ddp_spawn" stands for
    fitted = fit(net, strategy=strategy, devices=RANKS, **options)
    own = {name: value for name, value in fitted.state.items() if not name.startswith("others.")}
    return net, fitted, {first: own, **{name: tensors(part) for name, part in net.others.items()}}


def strategy_of(given: str | Callable[[], DDPStrategy]) -> str | DDPStrategy:
    return given if isinstance(given, str) else given()


@cache
def fit_one(mode: str, weighting: str) -> Fitted:
    """Fit on one process; modes that differ by their strategy alone share a fit."""
    own = MODES[mode]
    first = next(name for name, other in MODES.items() if _alike(other, own))
    return fit(make(mode, weighting), **own.options) if first == mode else fit_one(first, weighting)


def _alike(one: Mode, other: Mode) -> bool:
    return (one.module, one.optimizer, one.options) == (other.module, other.optimizer, other.options)


def poison(net: Dealt, steps: Iterable[int]) -> Dealt:
    """Let a loss be NaN or inf on one rank, as BAD says of these steps."""
    for step in steps:
        rank, task = BAD[step]
        part = net.batches[step][rank]
        if task == "depth":
            part["depth"] = torch.full_like(part["depth"], torch.inf)
        else:  # a broken input spoils every task that the rank has labels of
            part["x"] = torch.full_like(part["x"], torch.nan)
            part["kind"] = torch.zeros_like(part["kind"])
    return net


def fit_skipping(strategy: str, weighting: str, *, never: bool = False, kind: type[Dealt] = Dealt) -> Fitted:
    """Fit with Adam where the steps in BAD are skipped, or where their batches never existed."""
    torch.manual_seed(0)
    net = kind(VARIANTS[weighting](), "Adam", on_nonfinite="skip_step")
    if never:
        net.batches = [parts for step, parts in enumerate(net.batches) if step not in BAD]
    else:
        poison(net, BAD)
    with catch_warnings():
        filterwarnings("ignore", message="a training step is skipped")
        fitted = fit(net, strategy=strategy_of(NONFINITE[strategy]), devices=RANKS)
    assert net.skipped_steps == (0 if never else len(BAD))
    return fitted


def messages(net: Dealt, **options: Any) -> list[str]:
    """Return what each rank's fit raises."""
    raised = ""
    try:
        fit(net, **options)
    except (ValueError, RuntimeError) as error:
        raised = str(error)
    if hasattr(net, "counted"):
        net.counted.close()
    every = [""] * RANKS
    torch.distributed.all_gather_object(every, raised)
    return every


def raised(strategy: str) -> list[str]:
    """What each rank says of a loss that is not finite on one of them."""
    net = poison(Dealt(WEIGHTINGS["UncertaintyWeighting"]()), [11])
    return messages(net, strategy=strategy_of(NONFINITE[strategy]), devices=RANKS)


def accumulated(ranks: int = RANKS) -> Fitted:
    """Skip some of the batches that are accumulated."""
    torch.manual_seed(0)
    net = poison(Regularised(WEIGHTINGS["UncertaintyWeighting"](), on_nonfinite="skip_step"), BAD)
    with catch_warnings():
        filterwarnings("ignore", message="a training step is skipped")
        return fit(net, devices=ranks, accumulate_grad_batches=2, **({"strategy": "ddp"} if ranks > 1 else {}))


EVERY: dict[str, Callable[[], Any]] = {
    **{f"{mode}-{weighting}": partial(fit_two, mode, weighting) for mode, weighting in CELLS if mode != "spawn"},
    **{f"skipped-{each}-{name}": partial(fit_skipping, each, name) for each in NONFINITE for name in WEIGHTINGS},
    **{
        f"never-{each}-{name}": partial(fit_skipping, each, name, never=True)
        for each in NONFINITE
        for name in WEIGHTINGS
    },
    **{
        f"{'never' if never else 'skipped'}-{each}-regularised": partial(
            fit_skipping, each, FIRST, never=never, kind=Regularised
        )
        for each in NONFINITE
        for never in (False, True)
    },
    **{f"raised-{each}": partial(raised, each) for each in NONFINITE},
    "accumulated": accumulated,
}


def run(cells: list[str]) -> dict[str, Any]:
    return {cell: EVERY[cell]() for cell in cells}
