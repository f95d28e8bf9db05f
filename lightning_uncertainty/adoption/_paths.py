"""Dotted paths with indices into a host: `outputs[0].loss_weight`, `hparams['alpha']`, `criterion.task_weights[1]`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

__all__ = ["Keys", "fetch", "keys_of", "replaced", "split_at_value"]

Key = tuple[bool, str | int]
"""Whether it is an index in brackets, and the index, or the attribute's name."""

Keys = tuple[Key, ...]

_NAMED = 8
"""So many keys are named where one leads to nothing."""

_KEY = re.compile(r"""(?:^|\.)(\w+)|\[\s*(?:'([^']*)'|"([^"]*)"|(-?\d+))\s*\]""")


def keys_of(path: str, what: str) -> Keys:
    """Return the keys of a path, in order.

    Raises:
        ValueError: it is no such path.

    Example:
        >>> keys_of("outputs[0].weights['a']", "a path")
        ((False, 'outputs'), (True, 0), (False, 'weights'), (True, 'a'))
    """
    keys: list[Key] = []
    end = 0
    for match in _KEY.finditer(path):
        if match.start() != end:
            break
        name, single, double, number = match.groups()
        text = single if single is not None else double
        keys.append((False, name) if name else (True, int(number) if text is None else text))
        end = match.end()
    if not keys or end != len(path):
        raise ValueError(
            f"{what} should be names with dots and indices in brackets, as in \"outputs[0].weights['a']\": found "
            f"{path!r}"
        )
    return tuple(keys)


def fetch(root: Any, keys: Keys, what: str) -> Any:
    """Return what stands at the end of the keys.

    Raises:
        RuntimeError: nothing does.
    """
    for item, key in keys:
        try:
            root = root[key] if item else getattr(root, str(key))
        except (AttributeError, LookupError, TypeError) as error:
            raise RuntimeError(
                f"{what} should lead to something in the host: found no {'index' if item else 'attribute'} {key!r} in "
                f"a {type(root).__name__}{_instead(root, key, item)}; `describe` of lightning_uncertainty.adoption "
                "shows what there is"
            ) from error
    return root


def _instead(root: Any, key: str | int, item: bool) -> str:
    """Say what stands where a key leads to nothing: keys, how many, or attributes that are called alike."""
    if item and hasattr(root, "keys"):
        found = [repr(name) for name in root]
        return f" that has {_first(found)}" if found else " that is empty"
    if item and hasattr(root, "__len__") and not isinstance(root, str):
        return f" of {len(root)}" if not isinstance(root, Tensor) else f" of shape {list(root.shape)}"
    alike = get_close_matches(str(key), [name for name in dir(root) if not name.startswith("_")])
    return f" that has {_first([repr(name) for name in alike])}" if alike else ""


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def split_at_value(root: Any, keys: Keys, what: str) -> tuple[Keys, Keys]:
    """Return keys up to the first tensor, and the indices into it; all and none where no tensor is on the way.

    Raises:
        RuntimeError: the keys lead to nothing.
    """
    for end in range(len(keys) + 1):
        if isinstance(root, Tensor):
            return keys[:end], keys[end:]
        if end < len(keys):
            root = fetch(root, keys[end : end + 1], what)
    return keys, ()


@contextmanager
def replaced(root: Any, keys: Keys, value: Any, what: str) -> Iterator[None]:
    """Have another value at the end of the keys; what stood there stands there afterwards.

    Raises:
        RuntimeError: its owner cannot be written into.
    """
    owner, (item, key) = fetch(root, keys[:-1], what), keys[-1]
    if isinstance(owner, tuple):
        fields = getattr(owner, "_fields", ())
        place = fields.index(key) if not item and key in fields else key
        parts = [value if at == place else part for at, part in enumerate(owner)]
        made = type(owner)(*parts) if fields else tuple(parts)
        with replaced(root, keys[:-1], made, what):
            yield
        return
    if item and isinstance(owner, nn.ParameterList | nn.ParameterDict):  # would make a parameter of what it is given
        item, key = False, str(key % len(owner) if isinstance(key, int) else key)
    slots: MutableMapping[str, Any] | None = _slots(owner, str(key)) if not item else None
    inherited = slots is None and not item and _is_inherited(owner, str(key))
    old = fetch(owner, ((item, key),), what)
    try:
        _put(owner, item, key, slots, value)
    except (AttributeError, TypeError, ValueError) as error:
        raise RuntimeError(
            f"{what} should have an owner that can be written into: found a {type(owner).__name__} that refuses: "
            f"{error}; name the loss itself, as the host logs it or as a call returns it"
        ) from error
    try:
        yield
    finally:
        _put_back(owner, item, key, slots, value, old, inherited)


def _put_back(
    owner: Any,
    item: bool,
    key: str | int,
    slots: MutableMapping[str, Any] | None,
    value: Any,
    old: Any,
    inherited: bool,
) -> None:
    """Undo a replacement; what the owner's program has put there meanwhile stays, as it would have been."""
    left = slots[str(key)] if slots is not None else owner[key] if item else getattr(owner, str(key), value)
    if isinstance(value, Tensor) and isinstance(left, Tensor) and (left is not value or value._version):
        _put(owner, item, key, slots, _left(left.detach(), old))
    elif left is not value:
        _put(owner, item, key, slots, left)
    elif inherited:
        delattr(owner, str(key))
    else:
        _put(owner, item, key, slots, old)


def _left(value: Tensor, old: Any) -> Any:
    """Return what a program has made of a value that was a tensor for a while, as what it was."""
    if not isinstance(old, Tensor):
        return type(old)(value.item())
    made = value.to(old.dtype)
    return nn.Parameter(made, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else made


def _is_inherited(owner: Any, name: str) -> bool:
    """Whether an owner has a value from its class alone, so that its own is to be deleted again."""
    if name in getattr(owner, "__dict__", {}):
        return False
    nothing = object()
    of_class = inspect.getattr_static(type(owner), name, nothing)
    return of_class is not nothing and not hasattr(of_class, "__set__")


def _slots(owner: Any, name: str) -> MutableMapping[str, Any] | None:
    """Return where a module keeps a parameter, buffer or child of this name; None where it is none of them."""
    kept: Sequence[Any] = (owner._parameters, owner._buffers, owner._modules) if isinstance(owner, nn.Module) else ()
    return next((slots for slots in kept if name in slots), None)


def _put(owner: Any, item: bool, key: str | int, slots: MutableMapping[str, Any] | None, value: Any) -> None:
    if slots is not None:
        slots[str(key)] = value
    elif item:
        owner[key] = value
    elif str(key) in getattr(owner, "__dict__", {}) and not hasattr(getattr(type(owner), str(key), None), "__set__"):
        vars(owner)[str(key)] = value  # a frozen or typed configuration would refuse a tensor
    else:
        setattr(owner, str(key), value)
