"""What errors of torch's mean where leaves stand for a host's weights, and totals are gone back from twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lightning_uncertainty.adoption.parts import HostWeight, Part

__all__ = ["saying"]

_TWICE = (
    "what weighs and adds a host's losses should be differentiable twice: found that for one of {parts} it is "
    "compiled, or of a function that is so once; name losses as they go into it, as by log: or call:, or leave it "
    "uncompiled"
)

_SAID = {
    "a leaf Variable that requires grad is being used in an in-place": (
        "a host's weight should not be changed in place in the step that it weighs: found that one of {parts} is; name "
        "the loss itself, as the host logs it or as a call returns it"
    ),
    "does not currently support double backward": _TWICE,
    "@once_differentiable": _TWICE,
    "CheckpointError": (
        "a host's weight should not be read within a checkpoint, whose second run finds the number again and not what "
        "stood for it: found that one of {parts} is; name the loss itself, as the host logs it or as a call returns it"
    ),
}
"""What an error of torch's means, by what it has in it."""


@contextmanager
def saying(parts: Mapping[str, Part], weights: Mapping[str, HostWeight]) -> Iterator[None]:
    """Have torch's errors of places where no leaf can stand for a weight say so.

    Args:
        parts: of the tasks.
        weights: those among them that are named by weights.

    Raises:
        RuntimeError: there is one.
    """
    try:
        yield
    except RuntimeError as error:
        text = f"{type(error).__name__}: {error}"
        said = next((said for found, said in _SAID.items() if found in text), None)
        named = weights or (parts if said is _TWICE else {})
        if said is None or not named:
            raise
        raise RuntimeError(said.format(parts=", ".join(f"'{part}'" for part in named.values()))) from error
