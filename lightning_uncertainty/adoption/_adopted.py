"""The class that a host gets: a subclass of its own, of the same name, whose step returns the weighted total."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, wraps
from multiprocessing import parent_process
from types import new_class
from typing import Any

import torch
from torch import Tensor, nn

from lightning_uncertainty import _step as steps
from lightning_uncertainty._step import OWN_PARTS
from lightning_uncertainty.adoption._adoption import Adoption
from lightning_uncertainty.mixin import MultiTaskMixin

__all__ = ["KEY", "NAMES", "Adopted", "adopted_class"]

KEY = "lightning_uncertainty"
"""Of what is ours in a checkpoint."""


class Adopted(MultiTaskMixin):
    """What an adopted module does otherwise than its host."""

    _adoption: Adoption
    _host_class: type

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Log as the host does, and take note of a part."""
        watch = self._adoption.watch
        if watch is not None:
            watch.see_logged(name, value)
        super().log(name, value, *args, **kwargs)

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Go back from the weighted total, where the loss is made of the tasks' parts."""
        adoption = self._adoption
        if adoption.watch is None:
            super().manual_backward(loss, *args, **kwargs)  # type: ignore[misc]
            return
        weighted = adoption.weigh(self, loss)
        with adoption.watch.resting():
            super().manual_backward(loss if weighted is None else weighted, *args, **kwargs)  # type: ignore[misc]

    def configure_optimizers(self) -> Any:
        """Build the host's optimizers, with the log-variances in a group of their own."""
        with steps.own_group(self.task_weighting):
            return super().configure_optimizers()  # type: ignore[misc]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the modules that were named as shared.

        Raises:
            RuntimeError: none was.
        """
        paths = self._adoption.options.shared
        if not paths:
            raise RuntimeError(
                "shared_parameters should tell what the tasks share: found no shared= in the adoption; name the "
                "modules, as in adopt(..., shared='encoder')"
            )
        return [parameter for path in paths for parameter in self.get_submodule(path).parameters()]

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> Any:  # type: ignore[override]
        """Return the state that the host would have, for its own tools; a checkpoint has ours beside it."""
        state = super().state_dict(*args, prefix=prefix, **kwargs)
        if not _hands_back(self):
            for name in self._own_of(state, prefix):
                del state[name]
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load a state of the host's, which leaves ours as they are, or one with ours in it."""
        if not self._own_of(state_dict, prefix):
            state_dict.update(self._own_state(prefix))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @contextmanager
    def _as_host(self) -> Iterator[Any]:
        """Be of the host's own class for a while."""
        adopted, host = self.__class__, self._host_class
        self.__class__ = host  # type: ignore[assignment]
        try:
            yield host
        finally:
            self.__class__ = adopted

    def _own_state(self, prefix: str = "") -> dict[str, Any]:
        state = super().state_dict(prefix=prefix)
        return {name: _whole(state[name]) for name in self._own_of(state, prefix)}

    @staticmethod
    def _own_of(state: Mapping[str, Any], prefix: str) -> list[str]:
        own = tuple(f"{prefix}{part}." for part in OWN_PARTS)
        return [name for name in state if name.startswith(own)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put what is ours apart, as the state has the host's shape."""
        with self._as_host() as host:  # some write down which class they are
            host.on_save_checkpoint(self, checkpoint)
        checkpoint[KEY] = self._own_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load what is ours; a checkpoint of the host alone leaves it as it is.

        Raises:
            RuntimeError: a fit should resume from optimizers that have log-variances where these have none, or none.
        """
        with self._as_host() as host:
            host.on_load_checkpoint(self, checkpoint)
        self._check_optimizers_of(checkpoint)
        if KEY in checkpoint:
            self.load_state_dict(checkpoint[KEY], strict=False)

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

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = super().__reduce_ex__(protocol)
        if made[1] and made[1][0] is type(self):
            return (_bare, (self._host_class,), *made[2:])
        return made


@cache
def adopted_class(host: type) -> type[Adopted]:
    """Return the class that modules of a host's class get."""
    step: Any = host.training_step  # type: ignore[attr-defined]

    @wraps(step)  # Lightning reads the signature
    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        adoption: Adoption = self._adoption
        if adoption.watch is not None or not torch.is_grad_enabled():  # a step of validation that calls this one
            return step(self, *args, **kwargs)
        try:
            with adoption.begin(self, args, kwargs) as watch:
                returned = step(self, *args, **kwargs)
                watch.see_step(returned)
            return adoption.replace(self, returned) if self.automatic_optimization else returned
        finally:
            adoption.end()

    def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return host(*args, **kwargs)  # as `type(module).load_from_checkpoint` builds one: it is not adopted

    members: dict[str, Any] = {"training_step": training_step, "__new__": new, "_host_class": host}
    if host.validation_step is not _default(host, "validation_step"):  # type: ignore[attr-defined]
        members["validation_step"] = _validation_step(host)
    members |= {name: getattr(host, name) for name in ("__module__", "__qualname__", "__doc__")}
    return new_class(host.__name__, (Adopted, host), {}, lambda names: names.update(members))


def _hands_back(module: Any) -> bool:
    """Whether a process that a Trainer spawned is giving the trained module back to the one that did."""
    trainer = getattr(module, "_trainer", None)
    done = trainer is not None and trainer.state.status == "finished"
    return done and module._adoption.arrived and parent_process() is not None


def _whole(value: Any) -> Any:
    """Return a tensor as it is on one process."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _validation_step(host: type) -> Any:
    step: Any = host.validation_step  # type: ignore[attr-defined]

    @wraps(step)
    def validation_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        adoption: Adoption = self._adoption
        if not adoption.options.validation or adoption.watch is not None:
            return step(self, *args, **kwargs)
        try:
            with adoption.begin(self, args, kwargs, evaluating=True):
                returned = step(self, *args, **kwargs)
            adoption.evaluate(self)
            return returned
        finally:
            adoption.end()

    return validation_step


def _default(host: type, name: str) -> Any:
    """Return what a LightningModule has under a name that its subclass does not override."""
    base = next(one for one in host.__mro__ if one.__name__ == "LightningModule")
    return getattr(base, name)


def _bare(host: type) -> Any:
    """Return an adopted module without a state, for copies and pickles."""
    cls = adopted_class(host)
    return nn.Module.__new__(cls)


def _names() -> frozenset[str]:
    """Return the names that an adopted module needs for itself."""
    ours = [one for one in Adopted.__mro__ if one.__module__.startswith("lightning_uncertainty")]
    found = {name for one in ours for name in (*vars(one), *inspect.get_annotations(one))}
    registered = {"task_weighting", "task_calibration", "_tasks"}
    return frozenset(name for name in found | registered if not name.startswith("__"))


_HOSTS = {
    *("log", "manual_backward", "configure_optimizers", "on_save_checkpoint", "on_load_checkpoint"),
    *("state_dict", "_load_from_state_dict"),
}

NAMES = _names() - _HOSTS
"""That no host may have."""
