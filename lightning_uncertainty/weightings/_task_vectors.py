"""Vectors over tasks, whose checkpoints know the tasks by name.

Long, but one file: what a checkpoint may be, from none of these vectors to those of other tasks, is decided at once.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_uncertainty._tensors import Float32Module, Loadable, packed, text_of, text_tensor, unpacked

__all__ = ["TaskVectors", "whole"]

_NAMES = "_extra_state"
_FOREIGN = ("foreign_numbers", "foreign_form")

NOT_VECTORS = (_NAMES, *_FOREIGN)
"""What checkpoints hold beside vectors over tasks."""


def task_id(name: str) -> int:
    """Return a stable int64 for a task name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


class TaskVectors(Loadable, Float32Module):
    """Parameters and buffers `[T]`, one number per task, that are saved beside the names of the tasks.

    A checkpoint of tasks in another order is brought into ours; tasks that it does not know keep what they have here.
    What it knows of other tasks is dropped, with one warning. A checkpoint that has none of these vectors, as that of
    the model before it had tasks, loads with a warning too; one that has others is refused in one sentence, or, where
    the load is not strict, lets the tasks start anew. All this holds for vectors sharded over processes.

    Checkpoints hold tensors alone: the names are the numbers of `text_tensor`, a row for each task. They stand under
    the key `_extra_state`, where older checkpoints have a dict of them: FSDP2 reads from a file what the keys of
    today's module name, and no more.

    Attributes:
        tasks: task names, in order.
        task_ids: a number for each name, `[T]`.
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

    def register_names(self) -> None:
        """Register the buffers that tell the tasks, unfilled; `fill_names` fills them."""
        self.register_buffer(_NAMES, torch.empty(_names_tensor(self.tasks).shape, dtype=torch.int64))
        self.register_buffer("task_ids", torch.empty(len(self.tasks), dtype=torch.int64), persistent=False)

    def fill_names(self) -> None:
        """Write the tasks' names, and a number for each."""
        self.get_buffer(_NAMES).copy_(_names_tensor(self.tasks))
        self.task_ids.copy_(torch.tensor([task_id(name) for name in self.tasks]))

    def rename(self, renamed: Mapping[str, str]) -> None:
        """Have checkpoints that know a task by an older name load as today's, `{"old": "new"}`."""
        self.renamed = dict(renamed)

    def check_tasks(self) -> None:
        """Raise where vectors that were loaded one by one, as by FSDP2, belong to other tasks.

        Raises:
            RuntimeError: so it is.
        """
        found = _names_in(self.get_buffer(_NAMES))
        if tuple(self._today(found)) != self.tasks:
            raise RuntimeError(
                f"a full checkpoint that FSDP2 loads should have today's tasks in today's order, "
                f"{', '.join(self.tasks)}: found {', '.join(found)}; register them as they were when it was written, "
                "or give its state_dict to load_state_dict before anything is sharded"
            )
        self.checked = True

    @property
    def remembers(self) -> bool:
        """Whether there is anything that a step learns or changes."""
        return bool(self._vectors())

    def foreign_state(self) -> Any:
        """Return what is remembered in no vector, of builtins and tensors; None where there never is anything."""
        return None

    def take_foreign_state(self, state: Any, saved: tuple[str, ...]) -> None:
        """Take what `foreign_state` returned when the tasks, by their names of today, were these."""

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    @property
    def foreign_numbers(self) -> Tensor:
        """The numbers in `foreign_state`, as checkpoints have them."""
        return packed(self.foreign_state())[0]

    @property
    def foreign_form(self) -> Tensor:
        """The form of `foreign_state`, as checkpoints have it."""
        return packed(self.foreign_state())[1]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if (foreign := self.foreign_state()) is not None:
            destination.update(zip((prefix + name for name in _FOREIGN), packed(foreign), strict=True))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        missing, unexpected = args[2:4]
        self.remapped = self.checked = False
        names, foreign = self._named(state_dict, prefix)
        if any(state_dict.get(prefix + name) is vector for name, vector in self._vectors().items()):
            foreign = None  # FSDP2 loads one tensor at a time, beside those that are here: `check_tasks` looks at names
            if names is not None:
                state_dict[prefix + _NAMES] = _names_tensor(names)
        else:
            wrong, told = self._fit(state_dict, prefix, names)
            if told is not None:
                warnings.warn(told, stacklevel=2)
            if wrong is not None:
                foreign = None
                self._keep_own(state_dict, prefix)
                (missing if self.remembers else unexpected).append(_Explained((prefix or "weighting.")[:-1], wrong))
                if self.remembers:  # nobody is told here whether the load is strict
                    warnings.warn(wrong, stacklevel=2)
            state_dict[prefix + _NAMES] = _names_tensor(self.tasks)
        before = len(unexpected)
        super()._load_from_state_dict(state_dict, prefix, *args)
        unexpected[before:] = [
            key for key in unexpected[before:] if key != prefix + _NAMES
        ]  # torch takes it for another
        if foreign is not None and names is not None:
            self.take_foreign_state(foreign, tuple(self._today(names)))

    def _complete(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Add what a checkpoint in our order is too old to have."""

    def _vectors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds, by name; what knows its tasks itself, and the names, are left out."""
        return {
            name: own for name, own in self.state_dict(keep_vars=True).items() if self._is_own(name) and name != _NAMES
        }

    def _is_own(self, name: str) -> bool:
        within = tuple(f"{path}." for path, part in self.named_modules() if path and isinstance(part, TaskVectors))
        return name not in _FOREIGN and not name.startswith(within)

    def _named(self, state_dict: dict[str, Any], prefix: str) -> tuple[tuple[str, ...] | None, Any]:
        """Take the task names out of a checkpoint, None where it has none, and what else is remembered."""
        extra, ids = state_dict.pop(prefix + _NAMES, None), state_dict.pop(f"{prefix}task_ids", None)
        numbers, form = (state_dict.pop(prefix + name, None) for name in _FOREIGN)
        foreign: Any = None
        if isinstance(extra, dict):  # of an older checkpoint
            foreign = {name: value for name, value in extra.items() if name not in ("version", "tasks")}
            return tuple(extra.get("tasks") or ()), foreign or None
        if numbers is not None and form is not None:
            try:
                foreign = unpacked(numbers, form)
            except ValueError:
                warnings.warn(
                    f"the checkpoint has a mean of what {self._shown()} remembers in different forms: it starts anew",
                    stacklevel=2,
                )
        if isinstance(extra, Tensor) and extra.dim() == 2:
            return _names_in(extra), foreign
        return None if ids is None else self._names_by(ids), foreign

    def _names_by(self, ids: Tensor) -> tuple[str, ...]:
        """Return the names of an older checkpoint that has their numbers alone."""
        known = [*self.tasks, *self.renamed]
        numbers = torch.tensor([task_id(name) for name in known], dtype=torch.float64)
        apart = (whole(ids.detach()).cpu().double()[:, None] - numbers).abs()
        # whoever averages a model's buffers leaves these to the digits of float32, over 1 - decay
        near = apart <= 5e-3 * numbers.abs()
        return tuple(
            known[int(apart[place].argmin())] if near[place].any() else f"unknown {place + 1}"
            for place in range(len(apart))
        )

    def _today(self, names: Iterable[str]) -> list[str]:
        return [self.renamed.get(name, name) for name in names]

    def _fit(
        self, state_dict: dict[str, Any], prefix: str, names: tuple[str, ...] | None
    ) -> tuple[str | None, str | None]:
        """Make a checkpoint one of our tasks in our order.

        Returns:
            Why it cannot be, in a sentence, and what else is to be told; None where there is nothing.

        Raises:
            ValueError: there is not one name for each number of its vectors, or `renamed` makes two tasks of one name.
        """
        own, told, all_tasks = self._vectors(), None, ", ".join(self.tasks)
        for name, vector in own.items():
            if not vector.is_floating_point() and prefix + name in state_dict:  # a mean is no whole number
                state_dict[prefix + name] = state_dict[prefix + name].round()
        if names is not None and (not own or any(prefix + name in state_dict for name in own)):
            self._check_shapes(state_dict, prefix, names)
            told = self._remap(state_dict, prefix, self._adopted(names))
        self._complete(state_dict, prefix)
        theirs = {key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
        theirs = {name for name in theirs if self._is_own(name)} - self._non_persistent_buffers_set
        if not theirs and own:
            self._keep_own(state_dict, prefix)
            return None, f"the checkpoint has nothing of {self._shown()}, so its tasks start anew: {all_tasks}"
        if theirs != own.keys():
            found = _listed(" without ", own.keys() - theirs), _listed(" with ", theirs - own.keys())
            return (
                f"the checkpoint is not of {self._shown()}: found one{' and'.join(filter(None, found))}; take the "
                f"weighting that it was written with, or strict=False, with which the tasks start anew: {all_tasks}"
            ), None
        if own and names is None:
            return (
                "the checkpoint has lost the names of its tasks: found vectors without them; load another, or take "
                f"strict=False, with which the tasks start anew: {all_tasks}"
            ), None
        for path, part in self.named_children():
            if isinstance(part, TaskVectors):  # what is within is another's, or all is ours
                within = f"{prefix}{path}."
                copied = {key: value for key, value in state_dict.items() if key.startswith(within)}
                wrong, _ = part._fit(copied, within, part._named(copied, within)[0])
                if wrong is not None:
                    return wrong, None
        return None, told

    def _shown(self) -> str:
        return " ".join(repr(self).split())

    def _keep_own(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Put our state, and that of what is within us, in place of a checkpoint's."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            del state_dict[key]
        state_dict.update({prefix + name: own for name, own in self.state_dict().items() if name not in _FOREIGN})

    def _check_shapes(self, state_dict: dict[str, Any], prefix: str, names: tuple[str, ...]) -> None:
        """Look at the shapes of a checkpoint's vectors.

        Raises:
            ValueError: they have not one number for each name.
        """
        found = {name: [*state_dict[prefix + name].shape] for name in self._vectors() if prefix + name in state_dict}
        if any(shape[-1:] != [len(names)] for shape in found.values()):
            raise ValueError(
                f"a checkpoint's vectors should have one number for each of its {len(names)} tasks: found shapes "
                f"{found}; it is damaged, load another"
            )

    def _adopted(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return a checkpoint's tasks by the names of today.

        Raises:
            ValueError: it then has two tasks of one name.
        """
        saved = tuple(self._today(names))
        twice = {name for name in saved if saved.count(name) > 1}
        if twice and saved != names:
            raise ValueError(
                f"renamed should give every task of a checkpoint a name of its own: found {', '.join(sorted(twice))} "
                "twice; leave out of it the names that the checkpoint already has"
            )
        return saved

    def _remap(self, state_dict: dict[str, Any], prefix: str, saved: tuple[str, ...]) -> str | None:
        """Bring a checkpoint's vectors into the order of our tasks; unknown tasks keep our values.

        Returns:
            Which tasks came and went, in a sentence; None where there are none.
        """
        self.remapped = saved != self.tasks
        if not self.remapped:
            return None
        index = torch.tensor([saved.index(name) if name in saved else 0 for name in self.tasks])
        known = torch.tensor([name in saved for name in self.tasks])
        for name, own in self._vectors().items():
            if (key := prefix + name) in state_dict:
                vector = state_dict[key]
                theirs, ours = whole(vector), whole(own.detach())
                device = theirs.device
                mapped = torch.where(known.to(device), theirs[..., index.to(device)], ours.to(device))
                state_dict[key] = mapped if theirs is vector else _sharded_like(mapped, vector)
        changes = (
            ([name for name in self.tasks if name not in saved], "start anew"),
            ([name for name in saved if name not in self.tasks], "are dropped"),
        )
        parts = [f"{', '.join(changed)} {what}" for changed, what in changes if changed]
        return f"the checkpoint knows the tasks {', '.join(saved)}: {'; '.join(parts)}" if parts else None


class _Explained(str):
    """A key that did not fit, of which torch's error says why."""

    def __new__(cls, key: str, why: str) -> _Explained:
        explained = super().__new__(cls, key)
        explained.why = why
        return explained

    why: str

    def __format__(self, spec: str) -> str:
        return f"{self!s}: {self.why}"


def _names_tensor(names: Iterable[str]) -> Tensor:
    """Return names as numbers, a row for each."""
    return nn.utils.rnn.pad_sequence([text_tensor(name) for name in names], batch_first=True)


def _names_in(rows: Tensor) -> tuple[str, ...]:
    return tuple(text_of(row) for row in rows)


def _listed(what: str, names: Iterable[str]) -> str:
    return f"{what}{', '.join(sorted(names))}" if names else ""


def whole(vector: Tensor) -> Tensor:
    """Return all of a vector of which each process may hold a part."""
    if type(vector) in (Tensor, nn.Parameter):
        return vector
    from torch.distributed.tensor import DTensor  # torch 2.5; FSDP2 needs it anyway

    return vector.full_tensor() if isinstance(vector, DTensor) else vector  # type: ignore[no-untyped-call]


def _sharded_like(vector: Tensor, other: Any) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(vector, other.device_mesh, other.placements)
