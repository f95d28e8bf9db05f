"""What is said where, under manual optimization, no loss of the tasks comes by."""

from __future__ import annotations

import warnings

from lightning_uncertainty.adoption._looks import Looks

__all__ = ["Idling"]

_IDLE = 10
"""Steps after which that is no chance."""


class Idling(Looks):
    """Looks at steps and epochs in which nothing is weighed; an adoption fills in what is known."""

    _asked: bool
    _asked_with: bool
    _idle: int
    _idle_told: bool
    _why: str

    def note_idle(self) -> None:
        """Look, under manual optimization, at a step that is over.

        Raises:
            RuntimeError: parts were seen, and `manual_backward` was given nothing.
        """
        watch = self.watch
        assert watch is not None
        if watch.sights and not self._asked_with and not self._reached:
            found = "gives it nothing before these are seen" if self._asked else "calls it never"
            raise RuntimeError(
                "a host under manual optimization should call self.manual_backward after its losses are logged or "
                f"returned, as its loss is what is weighed: found a step that has the tasks' parts and {found}; name "
                "parts that are made before, as by call: or weight:, or, where it calls loss.backward() itself, write "
                "a step that calls weigh"
            )
        if self._reached:
            return
        self._idle += 1
        if self._idle <= _IDLE:
            self._why = self.unseen(self._parts)
        if self._idle == _IDLE:
            self._warn_once()

    def note_epoch(self) -> None:
        """Look at an epoch of manual optimization that is over.

        Raises:
            RuntimeError: nothing was weighed in it, and nobody said that this may be.
        """
        if self._reached or not self._idle:
            return
        needed = [task for task in self._parts if task not in self.options.may_be_absent]
        if needed and self._idle >= _IDLE:
            raise RuntimeError(
                f"the tasks' parts should be in a loss that manual_backward is given: found none in {self._idle} "
                f"steps, to the end of an epoch: {self._why}; name them otherwise (`describe` of "
                "lightning_uncertainty.adoption lists the ways), or, where their optimizer begins in a "
                "later epoch, say may_be_absent="
                f"{sorted({*needed, *self.options.may_be_absent})!r}"
            )
        self._warn_once()

    def _warn_once(self) -> None:
        if self._idle_told:
            return
        self._idle_told = True
        warnings.warn(
            f"the tasks' parts should be in a loss that manual_backward is given: found none in {self._idle} steps: "
            f"{self._why}; nothing is weighed",
            stacklevel=3,
        )
