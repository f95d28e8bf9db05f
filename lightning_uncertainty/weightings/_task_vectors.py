"""Vectors over tasks, whose checkpoints know the tasks by name."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_uncertainty._tensors import Float32Module

__all__ = ["TaskVectors", "whole"]


def task_id(name: str) -> int:
    """Return a stable int64 for a task name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


class TaskVectors(Float32Module):
    """Parameters and buffers `[T]`, one number per task, that are saved beside the names of the tasks.

    A checkpoint of tasks in another order is brought into ours; tasks that it does not know keep what they have here.
    What it knows of other tasks is dropped, with one warning. A checkpoint that has none of these vectors, as that of
    the model before it had tasks, loads with a warning too. All this holds for vectors sharded over processes.

    Attributes:
        tasks: task names, in order.
        task_ids: a number for each name, `[T]`, saved where names cannot be.
        checked: whether `check_tasks` has passed since a checkpoint was loaded.
        remapped: whether the last checkpoint loaded had other tasks or another order.
        renamed: today's name of tasks that checkpoints know by an older one.
    """

    task_ids: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.tasks: tuple[str, ...] = ()
        self.remapped = False
        self.checked = True
        self.renamed: dict[str, str] = {}

    @property
    def learning(self) -> bool:
        """Whether this call may change state: training mode, which the mixin sets for every step, with gradients."""
        return self.training and torch.is_grad_enabled()

    def own_task_ids(self) -> list[int]:
        """Return a stable int64 for every task name."""
        return [task_id(name) for name in self.tasks]

    def rename(self, renamed: Mapping[str, str]) -> None:
        """Have checkpoints that know a task by an older name load as today's, `{"old": "new"}`."""
        self.renamed = dict(renamed)

    def check_tasks(self) -> None:
        """Raise where vectors were loaded whose task names were lost on the way and do not agree.

        Raises:
            RuntimeError: the vectors belong to other tasks or another order.
        """
        own = torch.tensor(self.own_task_ids(), dtype=torch.float64)
        apart = (self.task_ids.detach().cpu().double()[:, None] - own).abs()
        # whoever averages a model's buffers leaves these to the digits of float32, over 1 - decay
        near = apart.diagonal() <= 5e-3 * own.abs()
        if not (near.all() and apart.argmin(1).equal(torch.arange(len(own)))):
            raise RuntimeError(
                f"the checkpoint's log-variances belong to other tasks or another order than {', '.join(self.tasks)}, "
                "and its task names are lost: register the tasks as they were when it was written"
            )
        self.checked = True

    @property
    def remembers(self) -> bool:
        """Whether there is anything that a step learns or changes."""
        return len(self._vectors()) > 1

    def get_extra_state(self) -> dict[str, Any]:
        """Return what stands beside the vectors in a checkpoint: builtins only."""
        return {"version": 1, "tasks": list(self.tasks)}

    def set_extra_state(self, state: Any) -> None:
        """Nothing to set: `_load_from_state_dict` has used it."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.remapped = self.checked = False
        extra = state_dict.setdefault(f"{prefix}_extra_state", None)
        if not self._start_anew(state_dict, prefix) and isinstance(extra, dict):
            names = self._names_in(state_dict, prefix, extra)
            saved = tuple(self.renamed.get(name, name) for name in names)
            if saved != names:
                self._adopt(state_dict, prefix, saved)
            self._remap(state_dict, prefix, saved)
        self._complete(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _complete(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Add what a checkpoint in our order is too old to have."""

    def _vectors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds, by name; what knows its tasks itself is left out."""
        within = tuple(f"{name}." for name, part in self.named_modules() if name and isinstance(part, TaskVectors))
        return {
            name: own
            for name, own in self.state_dict(keep_vars=True).items()
            if isinstance(own, Tensor) and not name.startswith(within)
        }

    def _names_in(self, state_dict: dict[str, Any], prefix: str, extra: dict[str, Any]) -> tuple[str, ...]:
        """Return a checkpoint's task names.

        Raises:
            ValueError: there is not one for each number of its vectors.
        """
        names = tuple(extra.get("tasks") or ())
        found = {name: [*state_dict[prefix + name].shape] for name in self._vectors() if prefix + name in state_dict}
        if any(shape[-1:] != [len(names)] for shape in found.values()):
            raise ValueError(
                f"a checkpoint's vectors should have one number for each of its {len(names)} tasks: found shapes "
                f"{found}; it is damaged, load another"
            )
        return names

    def _start_anew(self, state_dict: dict[str, Any], prefix: str) -> bool:
        """Whether a checkpoint has none of our vectors; it then loads as if it had those that we have."""
        own = self._vectors()
        learnt = [name for name in own if name != "task_ids"]
        if any(prefix + name in state_dict for name in learnt or own):
            return False
        state_dict.update({prefix + name: vector.detach() for name, vector in own.items()})
        if learnt:
            warnings.warn(
                f"the checkpoint has nothing of {self!r}, so its tasks start anew: {', '.join(self.tasks)}",
                stacklevel=2,
            )
        return True

    def _adopt(self, state_dict: dict[str, Any], prefix: str, saved: tuple[str, ...]) -> None:
        """Have a checkpoint know its tasks by the names of today.

        Raises:
            ValueError: it then has two tasks of one name.
        """
        twice = {name for name in saved if saved.count(name) > 1}
        if twice:
            raise ValueError(
                f"renamed should give every task of a checkpoint a name of its own: found {', '.join(sorted(twice))} "
                "twice; leave out of it the names that the checkpoint already has"
            )
        state_dict[f"{prefix}task_ids"] = torch.tensor([task_id(name) for name in saved])

    def _remap(self, state_dict: dict[str, Any], prefix: str, saved: tuple[str, ...]) -> None:
        """Bring a checkpoint's vectors into the order of our tasks; unknown tasks keep our values."""
        self.remapped = saved != self.tasks
        if not self.remapped:
            return
        added = [name for name in self.tasks if name not in saved]
        removed = [name for name in saved if name not in self.tasks]
        if added or removed:
            warnings.warn(
                f"the checkpoint knows the tasks {', '.join(saved)}: "
                + "; ".join(
                    f"{', '.join(names)} {what}"
                    for names, what in ((added, "start anew"), (removed, "are dropped"))
                    if names
                ),
                stacklevel=2,
            )
        index = torch.tensor([saved.index(name) if name in saved else 0 for name in self.tasks])
        known = torch.tensor([name in saved for name in self.tasks])
        for name, own in self._vectors().items():
            key = prefix + name
            if name == "task_ids":
                state_dict[key] = torch.tensor(self.own_task_ids())
            elif key in state_dict:
                vector = state_dict[key]
                theirs, ours = whole(vector), whole(own.detach())
                device = theirs.device
                mapped = torch.where(known.to(device), theirs[..., index.to(device)], ours.to(device))
                state_dict[key] = mapped if theirs is vector else _sharded_like(mapped, vector)


def whole(vector: Tensor) -> Tensor:
    """Return all of a vector of which each process may hold a part."""
    if type(vector) in (Tensor, nn.Parameter):
        return vector
    from torch.distributed.tensor import DTensor  # torch 2.5; FSDP2 needs it anyway

    return vector.full_tensor() if isinstance(vector, DTensor) else vector  # type: ignore[no-untyped-call]


def _sharded_like(vector: Tensor, other: Any) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(vector, other.device_mesh, other.placements)
