"""Texts and plain values as tensors, for checkpoints that hold tensors alone."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

__all__ = ["packed", "text_of", "text_tensor", "unpacked"]

_BYTES = 64  # a text's tensor has room for a multiple of so many, so that most texts have one length


def text_tensor(text: str, room: int = _BYTES) -> Tensor:
    """Return a text as int64 numbers: two for every byte of UTF-8, `16 (digit + 1)` of its hexadecimal digits, then 0.

    What lies within 8 of such a number is read as it. So a text survives what others do to all numbers of a checkpoint:
    an average that cuts whole numbers off or rounds them, a sum over checkpoints that is divided again, a cast to half
    precision. Bytes would wrap in the sum, and code points lose to a long average in float32.

    Example:
        >>> text_of(text_tensor("größe") * 0.99)
        'größe'
        >>> text_tensor("a")[:3].tolist()  # 0x61
        [112, 32, 0]
    """
    digits = [digit for byte in text.encode() for digit in divmod(byte, 16)]
    length = -(-max(len(digits), 1) // (2 * room)) * 2 * room
    return torch.tensor([16 * (digit + 1) for digit in digits] + [0] * (length - len(digits)))


def text_of(numbers: Tensor) -> str:
    """Return the text of such numbers; bytes that make none are replaced."""
    values = numbers.detach().to("cpu", torch.float64).nan_to_num()
    counts = (values / 16).round().clamp(0, 16).to(torch.int64)
    digits: list[int] = (counts[counts > 0] - 1).tolist()
    return bytes(16 * high + low for high, low in zip(digits[::2], digits[1::2], strict=False)).decode(errors="replace")


def packed(value: Any) -> tuple[Tensor, Tensor]:
    """Return the numbers in a value, float64, and the text of its form: builtins, lists, tuples, dicts and tensors.

    Numbers may be averaged. There is room for more of both, so that a later value has, as a rule, the same shapes.

    Example:
        >>> numbers, form = packed({"steps": 3, "mean": torch.tensor([0.5, 1.5]), "of": ("a", None)})
        >>> unpacked(numbers, form)
        {'steps': 3, 'mean': tensor([0.5000, 1.5000]), 'of': ('a', None)}
    """
    numbers: list[float] = []
    form = text_tensor(json.dumps(_form(value, numbers)), 32 * _BYTES)
    length = -(-max(len(numbers), 1) // _BYTES) * _BYTES
    return torch.tensor(numbers + [0.0] * (length - len(numbers)), dtype=torch.float64), form


def unpacked(numbers: Tensor, form: Tensor) -> Any:
    """Return the value that `packed` was given.

    Raises:
        ValueError: the form is none, as where values of different forms were averaged.
    """
    given = iter(numbers.detach().to("cpu", torch.float64).tolist())
    try:
        return _value(json.loads(text_of(form)), given)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, StopIteration) as error:
        raise ValueError(f"the form of a packed value should be its JSON: found {text_of(form)[:80]!r}") from error


def _form(value: Any, numbers: list[float]) -> Any:
    if value is None:
        return None
    if isinstance(value, bool | int | float) and (isinstance(value, float) or abs(value) <= 1 << 53):
        numbers.append(float(value))
        return type(value).__name__
    if isinstance(value, int | str):  # a larger number is no double
        return {"int" if isinstance(value, int) else "str": str(value)}
    if isinstance(value, Tensor):
        numbers.extend(value.detach().to("cpu", torch.float64).flatten().tolist())
        return {"tensor": str(value.dtype).removeprefix("torch."), "shape": [*value.shape]}
    if isinstance(value, dict):
        return {"dict": {name: _form(part, numbers) for name, part in value.items()}}
    if isinstance(value, tuple):
        return {"tuple": [_form(part, numbers) for part in value]}
    if isinstance(value, list):
        return [_form(part, numbers) for part in value]
    raise TypeError(f"what is packed should be of builtins and tensors: found {type(value).__name__}")


def _value(form: Any, numbers: Any) -> Any:
    if form is None:
        return None
    if isinstance(form, list):
        return [_value(part, numbers) for part in form]
    if form in ("bool", "int", "float"):
        number = next(numbers)
        return number if form == "float" else round(number) if form == "int" else number >= 0.5
    if "tensor" in form:
        dtype, shape = getattr(torch, form["tensor"]), form["shape"]
        flat = torch.tensor([next(numbers) for _ in range(torch.Size(shape).numel())], dtype=torch.float64)
        return (flat if dtype.is_floating_point else flat.round()).to(dtype).reshape(shape)
    if "dict" in form:
        return {name: _value(part, numbers) for name, part in form["dict"].items()}
    if "tuple" in form:
        return tuple(_value(part, numbers) for part in form["tuple"])
    return int(form["int"]) if "int" in form else form["str"]
