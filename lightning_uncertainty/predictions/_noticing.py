"""What stays off where dropout is meant to be on."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

__all__ = ["noticing"]

_PLAIN = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout, torch.feature_dropout)
_ALPHA = (F.alpha_dropout, F.feature_alpha_dropout)  # off where nothing is said
_NOBODY = "<a function>"
_looked: WeakKeyDictionary[nn.Module, tuple[type[nn.Module], ...]] = WeakKeyDictionary()


@contextmanager
def noticing(
    module: nn.Module, also: tuple[type[nn.Module], ...], drops: Callable[[nn.Module], bool]
) -> Iterator[None]:
    """Warn of what stayed off within, once for a network and `also`.

    Args:
        module: the network.
        also: classes that drop by themselves, and are on.
        drops: whether a part is a layer that drops.
    """
    if _looked.get(module) == also or _is_compiled(module):
        yield
        return
    calls, called = _Calls(), set[nn.Module]()
    layers = {
        name: part for name, part in module.named_modules() if isinstance(part, _DropoutNd) and drops(part) and name
    }
    blocks = {name: module.get_submodule(name.rpartition(".")[0]) for name in layers}
    with ExitStack() as hooks:
        for part in {*layers.values(), *blocks.values()}:
            handle = part.register_forward_pre_hook(lambda part, _: called.add(part))
            hooks.callback(handle.remove)
        with calls:
            yield
    if not called and not calls.any:
        return  # nothing ran
    _looked[module] = also
    idle = [name for name, part in layers.items() if part not in called and blocks[name] in called]
    classes = dict.fromkeys(type(blocks[name]).__name__ for name in idle)
    if calls.off:
        named = [name for name in calls.off if name != _NOBODY]
        _warn(f"functional dropout in {', '.join(calls.off)} stayed off", named)
    if idle:
        what = f"{', '.join(idle[:3])}{' and others' * (len(idle) > 3)} did not run, though {', '.join(classes)} did"
        _warn(f"{what} (attention may have a fused dropout of its own)", list(classes))


def _warn(what: str, classes: list[str]) -> None:
    mend = f"name the class in also=({', '.join(classes)},)" if classes else "call nn.Dropout there"
    warnings.warn(
        f"dropout that is meant to be on should drop: found that {what}, so that the epistemic uncertainty is too "
        f"small; {mend}, where it drops if self.training, or take a DeepEnsemble",
        stacklevel=2,
    )


class _Calls(TorchFunctionMode):
    """Notes calls of functional dropout that are off, by the class of the module that makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.off: dict[str, None] = {}
        self.any = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.any = True
        if func in _PLAIN or func in _ALPHA:
            p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            trains = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", func in _PLAIN))
            if p > 0 and not trains:
                self._note(sys._getframe(1))
        return func(*args, **kwargs)

    def _note(self, frame: Any) -> None:
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module):
                if not owner.training:  # else it is off on purpose
                    self.off[type(owner).__name__] = None
                return
            frame = frame.f_back
        self.off[_NOBODY] = None


def _is_compiled(module: nn.Module) -> bool:
    compiled = (hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) for part in module.modules())
    return torch.compiler.is_compiling() or any(compiled)
