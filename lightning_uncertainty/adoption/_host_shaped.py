"""States and checkpoints of an adopted module, which have the shape that the host alone would give them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_uncertainty._step import OWN_PARTS
from lightning_uncertainty.adoption._adoption import Adoption

__all__ = ["KEY", "HostShaped", "shape_states", "spawns", "unshape_states"]

KEY = "lightning_uncertainty"
"""Of what is ours in a checkpoint."""

_WEIGHT = "host_weights."
"""Begins what a checkpoint calls the host's weights, where losses of validation need them."""

_WRAPPERS = frozenset(("module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module"))
"""How wrappers of a whole module call it."""


class HostShaped(nn.Module):
    """Keeps what is ours out of states, and apart in checkpoints."""

    _adoption: Adoption
    _host_class: Any
    task_weighting: Any

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Set up as the host does, which may make its network there."""
        super().setup(*args, **kwargs)  # type: ignore[misc]
        self._take_dtype()

    def _take_dtype(self) -> None:
        """Have σ in float64 where the host is, and else in float32."""
        double = any(parameter.dtype == torch.float64 for parameter in self.parameters())
        self.task_weighting.to(dtype=torch.float64 if double else torch.float32)

    @contextmanager
    def _as_host(self) -> Iterator[Any]:
        """Be of the host's own class for a while."""
        adopted, host = self.__class__, self._host_class
        self.__class__ = host  # type: ignore[assignment]
        try:
            yield host
        finally:
            self.__class__ = adopted

    def _own_state(self) -> dict[str, Any]:
        """Return what is ours, whole."""
        return {name: _whole(value) for name, value in self._own_parts().items()}

    def _own_parts(self) -> dict[str, Any]:
        """Return what is ours, from where it is: a host may have a state_dict of its own."""
        state: dict[str, Any] = {}
        for part in OWN_PARTS:
            nn.Module.state_dict(self._modules[part], destination=state, prefix=f"{part}.")  # type: ignore[arg-type]
        return state

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        ours = self._own_parts()
        weights = {name.removeprefix(_WEIGHT): value for name, value in state.items() if name.startswith(_WEIGHT)}
        self._adoption.evaluation.host_weights.update(weights)
        state = {name: _sharded_as(ours.get(name), value) for name, value in state.items()}
        for part in OWN_PARTS:
            own = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
            self._modules[part].load_state_dict(own, strict=False)  # type: ignore[union-attr]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put what is ours apart, as the state has the host's shape."""
        with self._as_host() as host:  # some write down which class they are
            host.on_save_checkpoint(self, checkpoint)
        weights = {f"{_WEIGHT}{task}": value for task, value in self._adoption.evaluation.host_weights.items()}
        checkpoint[KEY] = {**self._own_state(), **weights}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load what is ours; a checkpoint of the host alone leaves it as it is.

        Raises:
            RuntimeError: a fit should resume from optimizers that have log-variances where these have none, or none.
        """
        with self._as_host() as host:
            host.on_load_checkpoint(self, checkpoint)
        self._check_optimizers_of(checkpoint)
        if KEY in checkpoint:
            self._load_own_state(checkpoint[KEY])
            for average in self._averages():  # whose state has the host's shape, too
                average._load_own_state(checkpoint[KEY])

    @property
    def strict_loading(self) -> bool:
        """Whether Lightning loads strictly; not from a file into shards, where it looks for every key, ours too."""
        path = getattr(getattr(self, "_trainer", None), "ckpt_path", None)
        by_key = path is not None and Path(path).is_file() and _is_sharded(self)
        return super().strict_loading and not by_key  # type: ignore[misc]

    @strict_loading.setter
    def strict_loading(self, strict: bool) -> None:
        self._strict_loading = strict

    def _averages(self) -> Iterator[HostShaped]:
        """Yield the averages of this module that callbacks keep, as WeightAveraging does."""
        for callback in getattr(getattr(self, "_trainer", None), "callbacks", ()):
            average = getattr(getattr(callback, "_average_model", None), "module", None)
            if isinstance(average, HostShaped):
                yield average

    def _check_optimizers_of(self, checkpoint: Mapping[str, Any]) -> None:
        """Look whether the optimizers of a checkpoint that is resumed have log-variances as ours do.

        Raises:
            RuntimeError: they do not.
        """
        trainer = getattr(self, "_trainer", None)
        states = checkpoint.get("optimizer_states", [])
        if trainer is None or trainer.state.fn != "fit" or not states:
            return
        groups = [group.get("name") for state in states for group in state.get("param_groups", [])]
        learnt, theirs = any(True for _ in self.task_weighting.parameters()), "log_variances" in groups
        if learnt != theirs:
            raise RuntimeError(
                f"a fit should resume with the optimizers that its checkpoint is of: found log-variances in "
                f"{'those of the checkpoint' if theirs else 'these'} alone; load its weights and fit anew "
                f"(`module.load_state_dict(checkpoint['state_dict'], strict=False)` and no ckpt_path), or adopt with "
                f"{'the weighting that it was trained with' if theirs else 'AnalyticUncertaintyWeighting()'}"
            )


def shape_states(module: nn.Module) -> None:
    """Have a module's states be the host's, whatever state_dict the host has, and whose class it is for a while."""
    module._register_state_dict_hook(_drop_own)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(_fill_own)  # type: ignore[no-untyped-call]


def unshape_states(module: nn.Module) -> None:
    """Undo `shape_states`."""
    for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for number, hook in list(hooks.items()):
            if getattr(hook, "hook", hook) in (_drop_own, _fill_own):
                del hooks[number]


def _drop_own(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Leave what is ours out of a state, as a checkpoint has it beside it; that of an outer module has not."""
    if not _hands_back(module) and not _is_part(prefix):
        for name in _own_of(state, prefix):
            del state[name]


def _fill_own(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Have a state of the host's leave ours as they are; one may also have ours in it."""
    if not _own_of(state, prefix):
        state.update({f"{prefix}{name}": value for name, value in module._own_parts().items()})


def _is_part(prefix: str) -> bool:
    """Whether a module is part of another that is no wrapper of it, and whose checkpoints have but one state."""
    return not all(name in _WRAPPERS for name in prefix.split(".")[:-1])


def _own_of(state: Mapping[str, Any], prefix: str) -> list[str]:
    own = tuple(f"{prefix}{part}." for part in OWN_PARTS)
    return [name for name in state if name.startswith(own)]


def _hands_back(module: Any) -> bool:
    """Whether a process that a Trainer spawned is giving the trained module back to the one that did."""
    trainer = getattr(module, "_trainer", None)
    if trainer is None or trainer.state.status != "finished":
        return False
    return spawns(trainer) and module._adoption.arrived and parent_process() is not None


def spawns(trainer: Any) -> bool:
    """Whether a Trainer fits in processes of its own making, and the process that made it has a module of its own."""
    return any("MultiProcessing" in kind.__name__ for kind in type(trainer.strategy.launcher).__mro__)  # XLA's, too


def _is_sharded(module: nn.Module) -> bool:
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


def _whole(value: Any) -> Any:
    """Return a tensor as it is on one process."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _sharded_as(ours: Any, value: Any) -> Any:
    """Return a whole tensor as one of ours is on its processes."""
    if not hasattr(ours, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(ours.device), ours.device_mesh, ours.placements)
