"""What is read off a host: the LightningModule that it is, and the objects that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["base_of", "check_uncompiled", "held_by", "module_at", "require_modules"]


def base_of(host: type) -> Any:
    """Return the LightningModule of either namespace that a class is of; None where it is of none."""
    return next((one for one in host.__mro__ if one.__name__ == "LightningModule"), None)


def check_uncompiled(module: Any) -> None:
    """Look whether a module's own step is traced by a compiler, which cannot see what adoption does in it.

    Raises:
        TypeError: it is.
    """
    found = None
    if "training_step" in vars(module):
        found = f"one on the {type(module).__name__} itself, as torch.compile of a whole LightningModule puts there"
    elif vars(module).get("_compiled_call_impl") is not None and _is_called(module):
        found = f"that {type(module).__name__}.compile() was called, under a strategy that calls the module"
    if found is not None:
        raise TypeError(
            f"a host's training_step should be its class's: found {found}; compile the network within it instead"
        )


def module_at(module: nn.Module, path: str) -> nn.Module | None:
    """Return the part of a module at a path, by whichever of its names; None where there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def require_modules(module: Any) -> None:
    """Look whether the modules that an adoption names are there.

    Raises:
        ValueError: one is not.
    """
    options = module._adoption.options
    for what, paths in {"shared": options.shared, "beside": [options.beside] if options.beside else []}.items():
        missing = [path for path in paths if module_at(module, path) is None]
        if missing:
            parts = [name for name, _ in module.named_children() if not name.startswith("task_")]
            raise ValueError(
                f"{what} should name modules of the host: found no {', '.join(missing)}; it has "
                f"{', '.join(parts) or 'none'}, and what is in them"
            )


def _is_called(module: Any) -> bool:
    """Whether a Trainer runs steps by calling the module, as where DDP is around it."""
    strategy = getattr(getattr(module, "_trainer", None), "strategy", None)
    return any(kind.__name__ == "ParallelStrategy" for kind in type(strategy).__mro__)


def held_by(host: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the objects with attributes that a host holds beside its modules, by name."""
    for name, value in vars(host).items():
        if not name.startswith("_") and hasattr(value, "__dict__") and not isinstance(value, type):
            yield name, value
