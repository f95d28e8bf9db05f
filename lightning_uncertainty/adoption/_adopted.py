"""The class that a host gets: a subclass of its own, of the same name, whose step returns the weighted total."""

from __future__ import annotations

import inspect
from functools import cache, wraps
from types import new_class
from typing import Any

import torch
from torch import Tensor, nn

from lightning_uncertainty import _step as steps
from lightning_uncertainty._step import is_ours, is_training
from lightning_uncertainty.adoption._adoption import Adoption
from lightning_uncertainty.adoption._host_shaped import HostShaped
from lightning_uncertainty.adoption._optimizers import check_made, one_group_more
from lightning_uncertainty.adoption._structure import base_of, check_uncompiled, module_at, require_modules
from lightning_uncertainty.mixin import MultiTaskMixin

__all__ = ["NAMES", "Adopted", "adopted_class"]


class Adopted(HostShaped, MultiTaskMixin):
    """What an adopted module does otherwise than its host."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Set up as the host does, and look at what was made of it since it was adopted.

        Raises:
            TypeError: it was compiled whole.
            RuntimeError: it has taken a name of ours.
        """
        if "fit" in (*args, *kwargs.values()):
            check_uncompiled(self)
        super().setup(*args, **kwargs)  # type: ignore[misc]
        self._check_names()

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Log as the host does, and take note of a part."""
        adoption = self._adoption
        adoption.evaluation.check_key(name)
        if adoption.watch is not None:
            adoption.watch.see_logged(name, value)
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

    def on_train_epoch_end(self) -> None:
        """End an epoch as the host does, and look whether anything was weighed.

        Raises:
            RuntimeError: under manual optimization nothing was.
        """
        super().on_train_epoch_end()  # type: ignore[misc]
        self._adoption.note_epoch()

    def configure_optimizers(self) -> Any:
        """Build the host's optimizers, with the log-variances in a group of their own.

        Raises:
            RuntimeError: they have none, or several optimizers may have it; or the host has taken a name of ours.
            ValueError: `shared=` or `beside=` names no module.
        """
        self._check_names()
        require_modules(self)
        beside = self._adoption.options.beside
        holder = None if beside is None else module_at(self, beside)
        with steps.own_group(self.task_weighting, beside=holder):
            with one_group_more(self.task_weighting):
                made = super().configure_optimizers()  # type: ignore[misc]
            check_made(made, self.task_weighting, beside)
            return made

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make no subclass known to the host: a registry of its own would take it for another model."""

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

    def _check_names(self) -> None:
        """Look whether the names that this one needs are its own still; a host may take them when a fit begins.

        Raises:
            RuntimeError: one is not.
        """
        taken = self._adoption.names.taken(self)
        if taken:
            raise RuntimeError(
                "a host should leave the names of MultiTaskMixin free, after it was adopted, too: found that "
                f"{self._host_class.__name__} has set {', '.join(taken)} since; rename it in a copy of the host's class"
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
        if adoption.watch is not None or not (torch.is_grad_enabled() and is_training(self, None)):
            return step(self, *args, **kwargs)  # a step of validation calls this one
        try:
            with adoption.begin(self, args, kwargs) as watch, watch.told():
                returned = step(self, *args, **kwargs)
                watch.see_step(returned)
            if self.automatic_optimization:
                return adoption.replace(self, returned)
            adoption.note_idle()
            return returned
        finally:
            adoption.end()

    def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return host(*args, **kwargs)  # as `type(module).load_from_checkpoint` builds one: it is not adopted

    members: dict[str, Any] = {"training_step": training_step, "__new__": new, "_host_class": host}
    if host.validation_step is not base_of(host).validation_step:  # type: ignore[attr-defined]
        members["validation_step"] = _validation_step(host)
    write: Any = host.__setattr__
    if write is not nn.Module.__setattr__:  # Lightning writes forty attributes a step
        members["__setattr__"] = _setattr(write)
    if host.configure_model is not base_of(host).configure_model:  # type: ignore[attr-defined] # strategies ask that
        members["configure_model"] = _configure_model(host)
    members |= {name: getattr(host, name) for name in ("__module__", "__qualname__", "__doc__")}
    try:
        return new_class(host.__name__, (Adopted, host), {}, lambda names: names.update(members))
    except Exception as error:
        raise TypeError(
            f"a host's class should allow a subclass of its name: found that {host.__name__} does not: {error}; its "
            "metaclass keeps a registry that a module cannot be adopted beside"
        ) from error


def _setattr(theirs: Any) -> Any:
    """Return what writes our own attributes past a host that guards its own."""

    def write(self: Any, name: str, value: Any) -> None:
        (nn.Module.__setattr__ if name in NAMES else theirs)(self, name, value)

    return write


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


def _configure_model(host: type) -> Any:
    configure: Any = host.configure_model  # type: ignore[attr-defined]

    @wraps(configure)
    def configure_model(self: Any) -> None:
        configure(self)
        self._take_dtype()

    return configure_model


def _bare(host: type) -> Any:
    """Return an adopted module without a state, for copies and pickles."""
    cls = adopted_class(host)
    return nn.Module.__new__(cls)


def _names() -> frozenset[str]:
    """Return the names that an adopted module needs for itself."""
    ours = [one for one in Adopted.__mro__ if is_ours(one)]
    found = {name for one in ours for name in (*vars(one), *inspect.get_annotations(one))}
    registered = {"task_weighting", "task_calibration", "_task_specs"}
    return frozenset(name for name in found | registered if not name.startswith("__"))


_HOSTS = {
    *("setup", "on_train_epoch_end", "log", "manual_backward", "configure_optimizers"),
    *("on_save_checkpoint", "on_load_checkpoint", "strict_loading"),
}

NAMES = _names() - _HOSTS
"""That no host may have."""
