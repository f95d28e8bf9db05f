"""What is looked at in an adopted module's total, and what is said of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_uncertainty._tensors import reads_values, world_size
from lightning_uncertainty.adoption._options import PLAIN, Options
from lightning_uncertainty.adoption._watch import Watch
from lightning_uncertainty.adoption.parts import Call, Function, HostWeight, Logged, Part

__all__ = ["LONG", "Looks"]

_CHECKED = 3

LONG = 100
"""Steps after which a warning says which task has not been found."""


_UNHEARD: dict[type[Part], str] = {
    Logged: "heard is what the step hands to the module's own log, and not to one that was kept before",
    Call: "heard is what is called by this path, and not a method that is kept elsewhere, nor a module's forward() "
    "itself, which is call:PATH.forward",
    Function: "heard is what modules hold by this name, and not what the host holds, which is a call:",
}


class Looks:
    """Looks at totals; an adoption fills in what is known.

    Attributes:
        options: what was asked for.
        watch: the step that is on.
    """

    options: Options
    watch: Watch | None
    _parts: Mapping[str, Part]
    _manual: bool
    _opposed: bool
    _steps: int
    _reached: set[str]
    _totals: list[set[str]]

    def is_checked(self, host: Any) -> bool:
        """Whether this step's total is looked at: in a fit's first steps, and where a step is logged anyway."""
        trainer = getattr(host, "_trainer", None)
        every = getattr(trainer, "log_every_n_steps", 1) or 0
        return self._steps < _CHECKED or bool(every and (self._steps + 1) % every == 0)

    def require_parts(self, losses: Collection[str]) -> None:
        """Look whether a total has every task that it must have.

        Raises:
            RuntimeError: it has not.
        """
        absent, watch = self.options.may_be_absent, self.watch
        assert watch is not None
        # one that is seen and left out would be weighed all the same in steps that nobody looks at
        known = self._reached if self._manual else self._reached - watch.sights.keys()
        never = [task for task in self._parts if task not in losses and task not in (*known, *absent)]
        if never:
            raise RuntimeError(
                f"every task's part should be in the host's loss: found none for {', '.join(never)}: "
                f"{self.unseen(never)}; name it otherwise (`describe` of lightning_uncertainty.adoption lists the "
                f"ways), or, only where its labels may be missing in a batch, say may_be_absent="
                f"{sorted({*never, *absent})!r}{self._by_number(losses) if self._manual else ''}"
            )

    def require_same(self, host: Any, losses: Collection[str]) -> None:
        """Look whether a total has the parts of those before it in its step; another optimizer's may have some.

        Raises:
            RuntimeError: it has others.
        """
        now = set(losses)
        for before in self._totals:
            other = (before ^ now) - {*self.options.may_be_absent}
            if other and before & now:
                raise RuntimeError(
                    f"the totals of a step that have a part in common should be of the same parts: found one of "
                    f"{', '.join(sorted(before))} and one of {', '.join(sorted(now))}, as where another optimizer's "
                    f"loss is made by the same call; where both are the tasks', say may_be_absent="
                    f"{sorted({*other, *self.options.may_be_absent})!r}{self._by_number(before & now)}"
                )
        self._totals.append(now)
        if len(self._totals) != 2 or self._steps >= _CHECKED:
            return
        hint, optimizers = self._by_number(now), len(getattr(getattr(host, "_trainer", None), "optimizers", ()))
        if hint and optimizers > 1:
            warnings.warn(
                f"with {optimizers} optimizers a part should be one call's: found 2 totals of {', '.join(sorted(now))} "
                f"in a step, each of which is weighed, whichever optimizer it is of{hint}",
                stacklevel=4,
            )

    def _by_number(self, losses: Collection[str]) -> str:
        """Say how to name the call that is meant, of losses that any call makes."""
        calls = [
            part for task in losses if isinstance(part := self._parts.get(task), Call | Function) and part.n is None
        ]
        return f"; or name the one that is meant, as in '{replace(calls[0], n=0)}'" if calls else ""

    def require_graphs(self, losses: Mapping[str, Tensor]) -> None:
        """Look whether the losses that weights multiply can be gone back from.

        Raises:
            RuntimeError: one cannot.
        """
        of_weights = [task for task in losses if isinstance(self._parts.get(task), HostWeight)]
        bare = [task for task in of_weights if not losses[task].requires_grad and losses[task].item()]
        if bare:
            raise RuntimeError(
                f"a loss that a weight multiplies should have a graph: found none for {', '.join(bare)}, as of a "
                "function that is differentiable once; name the loss itself, as the host logs it or as a call returns "
                "it"
            )

    def expect(self, total: float, losses: dict[str, float], weights: dict[str, float], rest: float) -> bool:
        """Return whether a total is the tasks', by its numbers; it may be an opponent's under manual optimization.

        Raises:
            RuntimeError: they are not those of a weighted sum of all parts.
        """
        if not all(map(math.isfinite, losses.values())):
            return True  # weigh tells of a loss that is not finite, or skips it
        if self._manual and weights and all(weight < 0 for weight in weights.values()):
            self._opposed = True  # from now on every total is looked at
            return False
        options = self.options
        self.require_parts(losses)
        if not math.isfinite(rest) and options.rest == PLAIN and options.on_nonfinite == "raise":
            raise _not_finite(rest)
        if rest and options.rest is None:
            raise RuntimeError(
                f"a host's loss should be a weighted sum of its parts: found {total:.4g}, of which {rest:.4g} no part "
                f"explains, with losses {_by_name(losses)} of weights {_by_name(weights)}; name what is missing, or "
                "say rest='plain' to add it as it is, or rest= a task whose loss it is"
            )
        free = {*options.may_be_absent, *options.constants}
        off = [task for task, weight in weights.items() if weight == 0 and task not in free]
        if off:
            raise RuntimeError(
                f"a host should give every task a weight: found 0 for {', '.join(off)}, of a task that is switched "
                "off or a total that is not a sum (as a maximum); give it a weight, leave the task out, say "
                f"may_be_absent={sorted({*off, *options.may_be_absent})!r}, or, of a regulariser that is annealed, "
                "rest='plain' or the likelihood 'constant'"
            )
        gone = [
            task
            for task, part in self._parts.items()
            if isinstance(part, HostWeight) and losses.get(task) == 0 and task not in options.may_be_absent
        ]
        if options.rest in options.tasks and not rest:
            gone.append(str(options.rest))
        if gone and options.count is None and self._steps < _CHECKED:  # which tells of labels that are missing
            raise RuntimeError(
                f"a weighted loss should be there in the first steps: found exactly 0 for {', '.join(gone)}, as of "
                f"labels that are missing or a total that is not a sum (as a maximum); where labels may be missing, "
                f"say may_be_absent={sorted({*gone, *options.may_be_absent})!r}"
            )
        negative = [task for task, weight in weights.items() if weight < 0 and task not in options.kept]
        if negative:
            raise RuntimeError(
                f"a host's weight should be positive: found {weights[negative[0]]:.4g} for {negative[0]}, which the "
                "host makes large and not small; leave it to rest='plain', or give it the likelihood 'constant', "
                "which keeps the host's weight"
            )
        return True

    def is_broken(self, host: Any, rest: Tensor, losses: Mapping[str, Any]) -> bool:
        """Whether a rest that is added is NaN or infinite on any process, where the losses are not.

        Raises:
            RuntimeError: it is, and no step is to be skipped.
        """
        if not (host._task_skips or reads_values(rest)):
            return False
        means = [loss[0] if isinstance(loss, tuple) else loss for loss in losses.values()]
        broken = torch.stack([~rest.isfinite().all(), *(mean.isfinite().all() for mean in means)]).all().float()
        if world_size() > 1:
            torch.distributed.all_reduce(broken)
        if broken and not host._task_skips:
            raise _not_finite(rest.item())
        return bool(broken)

    def warn_of_absent(self) -> None:
        never = [task for task in self.options.may_be_absent if task not in self._reached and task in self._parts]
        if never:
            warnings.warn(
                f"a task that may be absent should be there at times: found {', '.join(never)} in none of {LONG} "
                f"steps: {self.unseen(never)}",
                stacklevel=3,
            )

    def unseen(self, tasks: Iterable[str]) -> str:
        """Say for each of tasks why its part is not in a total."""
        watch = self.watch
        assert watch is not None
        why = []
        for task in tasks:
            part = self._parts[task]
            if task in watch.sights:
                found = "was seen, but the loss does not depend on it"
            elif task in watch.useless:
                found = f"was seen as {watch.useless[task]}"
                if isinstance(part, Logged) and not self.options.follow and not found.endswith("metric"):
                    found += " (follow=True finds the loss behind detach() and item())"
            elif isinstance(part, HostWeight):
                weight = watch.weights.of(task, list(watch.weights.leaves))
                off = weight is not None and weight.item() == 0
                found = f"is {'0' if off else 'there'}, but the loss does not depend on it"
            else:
                suffixed = isinstance(part, Logged) and part.key.endswith(("_step", "_epoch"))
                hint = "Lightning adds _step and _epoch by itself" if suffixed else _UNHEARD.get(type(part), "")
                near = watch.near(part.key) if isinstance(part, Logged) and not suffixed else []
                hint = f"logged was {', '.join(near)}" if near else hint
                found = f"was never reached{f' ({hint})' if hint and not getattr(part, 'n', 0) else ''}"
            why.append(f"'{part}' {found}")
        return "; ".join(why)


def _not_finite(rest: float) -> RuntimeError:
    """Return what is said of a rest that is added."""
    return RuntimeError(
        f"the rest of a host's loss, which no part explains, should be finite: found {rest:.4g} where the tasks' "
        "losses are; look at what the host adds to them, or say on_nonfinite='skip_step'"
    )


def _by_name(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
