"""Whether a module can be adopted."""

from __future__ import annotations

import dis
import inspect
from typing import Any

from torch import nn

from lightning_uncertainty.adoption._adopted import NAMES, Adopted
from lightning_uncertainty.adoption._structure import base_of, check_uncompiled, require_modules
from lightning_uncertainty.balancing import GradientBalancing, GradNorm
from lightning_uncertainty.mixin import MultiTaskMixin

__all__ = ["check_host", "check_optimizer", "check_paths", "check_shared"]

_MAKING = ("setup", "configure_model")
"""Hooks in which a host may make modules."""


def check_host(module: Any) -> None:
    """Look whether a module can be adopted.

    Raises:
        TypeError: it cannot.
    """
    if isinstance(module, type):
        name = module.__name__
        raise TypeError(f"adopt takes a LightningModule: found the class {name}; give an instance, as {name}(...)")
    kind = type(module).__name__
    base = base_of(type(module))
    if base is None or not isinstance(module, nn.Module):
        inner = getattr(module, "_orig_mod", None)
        mend = "; adopt the module itself, and compile the network within it" if inner is not None else ""
        raise TypeError(f"adopt takes a LightningModule: found a {kind}{mend}")
    check_uncompiled(module)
    if isinstance(module, Adopted):
        return
    if isinstance(module, MultiTaskMixin):
        raise TypeError(
            f"adopt is for models whose code is not yours: found {kind}, a MultiTaskMixin; call weigh in its step"
        )
    if type(module).training_step is base.training_step:  # type: ignore[attr-defined]
        raise TypeError(f"a host should have a training_step: found none in {kind}; adopt the module that is trained")
    caught = [name for name, value in vars(type(module)).items() if name != "__init__" and _never_goes_up(value)]
    if caught:
        raise TypeError(
            f"a host's methods should go up by super(), which works in a subclass too: found super(self.__class__, "
            f"self) or super(type(self), self) in {kind}.{', '.join(caught)}, which is itself again in any subclass; "
            "change it in a copy of the host's class"
        )
    nothing = object()
    taken = [
        name
        for name in sorted(NAMES)
        if inspect.getattr_static(module, name, nothing) is not nothing
        or name in module._modules
        or name in module._parameters
        or name in module._buffers
    ]
    if taken:
        raise TypeError(
            f"a host should leave the names of MultiTaskMixin free: found {', '.join(taken)} in {kind}, which would be "
            "hidden; rename it in a copy of the host's class"
        )


def _never_goes_up(method: Any) -> bool:
    """Whether a method asks for what is above the class of its object, whichever that is."""
    code = getattr(inspect.unwrap(method), "__code__", None)
    if code is None or "super" not in code.co_names or not code.co_argcount:
        return False
    loaded = [one.argval for one in dis.get_instructions(code) if one.opname.startswith("LOAD")]
    names = [name for value in loaded for name in (value if isinstance(value, tuple) else (value,))]
    own = code.co_varnames[0]
    endless = (["super", own, "__class__", own], ["super", "type", own, own])
    return any(names[at : at + 4] in endless for at in range(len(names)))


def check_optimizer(module: Any) -> None:
    """Look whether an optimizer that is built elsewhere, as by a command line, could have log-variances.

    Raises:
        RuntimeError: it could not.
    """
    if "configure_optimizers" in vars(module) and any(True for _ in module.task_weighting.parameters()):
        raise RuntimeError(
            "a host's optimizer should be built in its class's configure_optimizers, or log-variances are in none: "
            f"found one on the {type(module).__name__} itself, as command lines put there with an optimizer that is "
            "built before; take AnalyticUncertaintyWeighting(), which has nothing to be optimized"
        )


def check_shared(module: Any) -> None:
    """Look whether a weighting that looks at gradients can see them, and whose.

    Raises:
        ValueError: it cannot.
    """
    weighting, paths = module.task_weighting, module._adoption.options.shared
    kind = type(weighting).__name__
    if isinstance(weighting, GradientBalancing | GradNorm) and (weighting.on == "features" or not paths):
        raise ValueError(
            f"{kind} should look at parameters that the tasks of an adopted module share: found on="
            f"{weighting.on!r} and shared={list(paths)}; say {kind}(on='parameters') and name the modules, as in "
            "shared='encoder'"
        )


def check_paths(module: Any) -> None:
    """Look whether what `shared=` and `beside=` name is there; what a host makes when a fit begins is looked for then.

    Raises:
        ValueError: it is not.
    """
    if not any(getattr(module._host_class, hook) is not getattr(base_of(type(module)), hook) for hook in _MAKING):
        require_modules(module)
