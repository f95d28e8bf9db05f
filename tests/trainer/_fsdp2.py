"""What is trained with FSDP on two processes and without on one; what ranks run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import distributed, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from lightning_uncertainty import UncertaintyMonitor, UncertaintyWeighting
from lightning_uncertainty.weightings._task_vectors import TaskVectors
from tests._launch import RANKS, ROOT
from tests._nets import trainer
from tests._ranks import STEPS, Rows
from tests.trainer._sharded import SKIPPED, ClippedApart, HalfSharded, InOne, Named, OnMeta, Sharded, Spoilt, Unsharded
from tests.trainer._weightings import WEIGHTINGS

Outcome = dict[str, Any]


def state_of(net: nn.Module) -> Rows:
    """All of a module's tensors, whole."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).clone()
        for name, value in net.state_dict().items()
        if not name.endswith(("._extra_state", ".task_ids"))  # which older checkpoints have as other things
    }


def fit(net: LightningModule, ranks: int, *, full: bool = False, save: Path | None = None, **options: Any) -> Outcome:
    """Fit a module and return all that can be seen of it; `full` is the kind of its checkpoints."""
    monitor = UncertaintyMonitor(table=False)
    found = {name: options.pop(name, None) for name in ("ckpt_path", "train_dataloaders")}
    fitted = make_trainer(ranks, full, callbacks=[monitor], **options)
    fitted.fit(net, **found)
    if save is not None:
        fitted.save_checkpoint(save)
    state = state_of(net)
    if ranks > 1:
        for name, tensor in state.items():
            both = [torch.empty_like(tensor) for _ in range(ranks)]
            distributed.all_gather(both, tensor.contiguous())
            assert torch.equal(both[0].nan_to_num(), both[1].nan_to_num()), f"ranks disagree on {name}"
    logged = {key: value.item() for key, value in fitted.callback_metrics.items() if key.startswith("val/")}
    return {"state": state, "rows": monitor.history.rows, "sigma": net.sigma(), "logged": logged}


def make_trainer(ranks: int, full: bool = False, **options: Any):
    if ranks > 1:
        strategy = ModelParallelStrategy(ranks, 1, save_distributed_checkpoint=not full)
        options = {"devices": ranks, "strategy": strategy, **options}
    return trainer(
        **{
            "max_epochs": 1,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "use_distributed_sampler": False,
            **options,
        }
    )


def seeded(kind: Callable[..., LightningModule], *arguments: Any, seed: int = 0, **more: Any) -> LightningModule:
    torch.manual_seed(seed)
    return kind(*arguments, **more)


def weighted(name: str, optimizer: str, dtype: torch.dtype, ranks: int) -> Outcome:
    return fit(seeded(Sharded, WEIGHTINGS[name](), optimizer).to(dtype), ranks)


def learnt(kind: type[Sharded], ranks: int, **options: Any) -> Outcome:
    return fit(seeded(kind, UncertaintyWeighting(), "Adam").double(), ranks, **options)


def one_task(ranks: int) -> Outcome:
    """Rank 1 has nothing of its log-variance."""
    return fit(seeded(Named, "depth").double(), ranks, gradient_clip_val=0.3)


def spoilt(ranks: int) -> Outcome:
    """One process is given the batches that two do not skip."""
    net = seeded(Spoilt if ranks > 1 else Sharded, UncertaintyWeighting(), "Adam", on_nonfinite="skip_step").double()
    if ranks == 1:
        net.batches = [parts for step, parts in enumerate(net.batches) if step not in SKIPPED]
    outcome = fit(net, ranks, gradient_clip_val=0.3)
    assert net.skipped_steps == (len(SKIPPED) if ranks > 1 else 0)
    outcome["rows"] = [{**row, "step": 0} for row in outcome["rows"]]  # a skipped step counts as one
    return outcome


def on_meta(late: bool, ranks: int) -> Outcome:
    with make_trainer(ranks).init_module(empty_init=ranks > 1 and not late):
        net = OnMeta(late and ranks > 1)
    assert ranks == 1 or late or net.trunk[0].weight.is_meta
    return fit(net, ranks, limit_val_batches=1.0)


def guide(ranks: int) -> Outcome:
    """The module that the guide shows."""
    page, shown = (ROOT / "docs/fsdp.md").read_text(encoding="utf-8"), {}
    exec(re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)[0], shown)
    net = seeded(shown["RoomNet"]).double()
    x, own = torch.randn(STEPS, 8, 4).double(), slice(distributed.get_rank() if ranks > 1 else 0, None, ranks)
    batches = [(rows[own], 3 * rows[own, :1] + 1, rows[own, 1:].argmax(1)) for rows in x]
    return fit(net, ranks, gradient_clip_val=1.0, train_dataloaders=DataLoader(batches, batch_size=None))


SAME: dict[str, Callable[[int], Outcome]] = {
    **{f"{name}, float64": partial(weighted, name, "Adam", torch.float64) for name in WEIGHTINGS},
    **{f"{name}, float32": partial(weighted, name, "SGD", torch.float32) for name in list(WEIGHTINGS)[::4]},
    "clipped by norm": partial(learnt, Sharded, gradient_clip_val=0.3),
    "clipped by value": partial(learnt, Sharded, gradient_clip_val=0.01, gradient_clip_algorithm="value"),
    "clipped apart": partial(learnt, ClippedApart, gradient_clip_val=0.3),
    "accumulated": partial(learnt, Sharded, accumulate_grad_batches=3),
    "validated in between": partial(learnt, Sharded, val_check_interval=5, limit_val_batches=1.0),
    "one task": one_task,
    "of the guide": guide,
    "skipped steps": spoilt,
    "made on meta, float32": partial(on_meta, False),
    "made on meta in configure_model, float32": partial(on_meta, True),
}


# -- what only two processes do ----------------------------------------------------------------------------------------


FULL, SHARDS = Path("full.ckpt"), Path("sharded.ckpt")  # where a launch runs
OLD_FULL, OLD_SHARDS = Path("old_full.ckpt"), Path("old_sharded.ckpt")


@cache
def resumed(path: Path) -> Outcome:
    """Two epochs, of which the second is another run's; `path` is the first one's checkpoint."""
    full = path in (FULL, OLD_FULL)
    with as_before() if path == OLD_FULL else nullcontext():
        first = fit(seeded(Named).double(), RANKS, full=full, save=path)
    return {"first": first, **fit(seeded(Named, seed=5).double(), RANKS, full=full, max_epochs=2, ckpt_path=path)}


@contextmanager
def as_before() -> Iterator[None]:
    """Have checkpoints of weightings be as they were when their names were a dict, beside their hashes."""

    def save(self: TaskVectors, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        kept(self, destination, prefix, keep_vars)
        destination[f"{prefix}_extra_state"] = {"version": 1, "tasks": list(self.tasks)}
        destination[f"{prefix}task_ids"] = self.task_ids

    kept = TaskVectors._save_to_state_dict
    TaskVectors._save_to_state_dict = save
    try:
        yield
    finally:
        TaskVectors._save_to_state_dict = kept


def written_before() -> Outcome:
    """Shards of the first epoch; torch reads of them what today's keys name, and one is a dict no more."""
    with as_before():
        return fit(seeded(Named).double(), RANKS, save=OLD_SHARDS)


def straight(ranks: int) -> Outcome:
    return fit(seeded(Named).double(), ranks, max_epochs=2)


def half(ranks: int) -> Outcome:
    net = seeded(Sharded, UncertaintyWeighting(), "Adam")
    return fit(net, ranks, precision="bf16-true")


def read(*names: str) -> Outcome:
    """A sharded checkpoint, read by modules whose tasks are others or in another order."""
    resumed(SHARDS)
    net = seeded(Named, *names).double()
    make_trainer(RANKS, limit_val_batches=1).validate(net, ckpt_path=SHARDS, verbose=False)
    return {"state": state_of(net), "sigma": net.sigma()}


def tuned(path: Path, ranks: int) -> Outcome:
    """A full checkpoint with tasks in another order, one more and one less, read before it is sharded."""
    net = seeded(Named, "kind", "depth", seed=5).double()
    net.load_state_dict(torch.load(path)["state_dict"], strict=False)
    return fit(net, ranks)


def refused(make: Callable[[], Outcome]) -> str:
    try:
        make()
    except (Exception, CheckpointException) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def warned(make: Callable[[], Outcome]) -> Outcome:
    """With our warnings as errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="parameters should be sharded")
        return make()


def wrapped(name: str, apart: bool, ranks: int) -> Outcome:
    """FSDP1, in a loop of torch alone: around the whole, or around every layer and the weighting too."""
    net = seeded(InOne, WEIGHTINGS[name](), "Adam").double()
    module: nn.Module = net
    if ranks > 1:
        policy = ModuleWrapPolicy({nn.Linear, type(net.task_weighting)}) if apart else None
        cpu = torch.device("cpu")
        module = FullyShardedDataParallel(net, auto_wrap_policy=policy, use_orig_params=True, device_id=cpu)
    optimizer = torch.optim.Adam(net.parameter_groups(lr=1e-2))
    rows = []
    for parts in net.batches:
        optimizer.zero_grad()
        module(parts if ranks == 1 else [parts[distributed.get_rank()]]).backward()
        optimizer.step()
        rows.append({f"{kind}/{task}": value for kind, own in net.take_row().items() for task, value in own.items()})
    with FullyShardedDataParallel.summon_full_params(module):
        state = {name.replace("_fsdp_wrapped_module.", ""): value for name, value in state_of(net).items()}
    return {"state": state, "rows": rows, "sigma": net.sigma(), "logged": {}}


FSDP1: dict[str, Callable[[int], Outcome]] = {
    **{f"{name}, wrapped apart": partial(wrapped, name, True) for name in WEIGHTINGS},
    "UncertaintyWeighting, wrapped in one": partial(wrapped, "UncertaintyWeighting", False),
}


def of_other_tasks() -> Outcome:
    resumed(FULL)
    return tuned(FULL, RANKS)


def reordered(path: Path) -> Outcome:
    """A run of a checkpoint's tasks in another order, which is to be resumed from it."""
    resumed(path)
    return fit(Named("width", "depth", "kind"), RANKS, full=path == FULL, max_epochs=2, ckpt_path=path)


EVERY: dict[str, Callable[[], Any]] = {
    **{name: partial(make, RANKS) for name, make in {**SAME, **FSDP1}.items()},
    "straight": partial(straight, RANKS),
    "sharded": partial(resumed, SHARDS),
    "full": partial(resumed, FULL),
    "sharded, of before": written_before,
    "full, of before": partial(resumed, OLD_FULL),
    "reordered": partial(read, "kind", "depth", "width"),
    "tuned": of_other_tasks,
    "bf16-true": partial(half, RANKS),
    "forgotten": partial(refused, partial(learnt, Unsharded, RANKS)),
    "forgotten in part": partial(refused, partial(warned, partial(learnt, HalfSharded, RANKS))),
    "removed": partial(refused, partial(read, "depth", "width")),
    "resumed in another order": partial(refused, partial(reordered, SHARDS)),
    "loaded one by one": partial(refused, partial(reordered, FULL)),
}


def run(cells: list[str]) -> dict[str, Any]:
    return {cell: EVERY[cell]() for cell in cells}
