"""What an adopted module knows of its adoption, and how a step's loss becomes the weighted one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_uncertainty._tensors import world_size
from lightning_uncertainty.adoption._counts import counted, of_all_ranks, size_of
from lightning_uncertainty.adoption._options import PLAIN, Options
from lightning_uncertainty.adoption._terms import Terms, losses_alone, terms_of
from lightning_uncertainty.adoption._watch import Plan, Watch
from lightning_uncertainty.adoption.parts import HostWeight, Logged
from lightning_uncertainty.likelihoods import Counted

__all__ = ["Adoption"]

_CHECKED = 3


class Adoption:
    """The adoption of a host.

    Attributes:
        options: what was asked for.
        given: what stood in the host before.
        watch: the step that is on; None between steps, as no graph may outlive its step.
        arrived: whether the module is a copy, as one that came from another process, where it was adopted.
    """

    def __init__(self, options: Options, given: set[str]) -> None:
        self.options = options
        self.given = given
        self.watch: Watch | None = None
        self.arrived = False
        self._manual = self._opposed = False
        self._parts, self._plans = dict(options.parts), dict[bool, Plan]()
        self._batch: Any = None
        self._steps, self._reached = 0, set[str]()
        self._trainer: int | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, arrived=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "watch": None, "_batch": None, "_plans": {}}

    # -- a step --------------------------------------------------------------------------------------------------------

    def begin(self, host: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, evaluating: bool = False) -> Watch:
        """Return what watches a step."""
        plan = self._plans.get(evaluating)
        if plan is None:
            plan = self._plans[evaluating] = Plan(dict(self.options.validation) if evaluating else self._parts)
        self.watch = Watch(host, plan, follow=self.options.follow, evaluating=evaluating)
        self._batch = args[0] if args else next(iter(kwargs.values()), None)
        self._manual = not host.automatic_optimization
        return self.watch

    def end(self) -> None:
        """Forget the step."""
        self.watch, self._batch = None, None

    def replace(self, host: Any, returned: Any) -> Any:
        """Return what a step returned with the weighted total in place of its loss.

        Raises:
            RuntimeError: the loss is not made of the parts.
        """
        if returned is None:  # the host has Lightning skip this batch
            return None
        if not isinstance(returned, Mapping):
            return self._required(host, returned)
        total = self._required(host, returned["loss"])
        changed: Any = {**returned} if type(returned) is dict else _copied(returned)
        changed["loss"] = total
        return changed

    def _required(self, host: Any, total: Tensor) -> Tensor:
        weighted = self.weigh(host, total)
        if weighted is None:
            raise RuntimeError(
                "a host's loss should be made of the tasks' parts: found none of them in it: "
                f"{self._unseen(self._parts)}"
            )
        return weighted

    def weigh(self, host: Any, total: Tensor) -> Tensor | None:
        """Return the weighted total in place of a host's; None where it is another optimizer's.

        Raises:
            RuntimeError: the host's is no weighted sum of the parts.
        """
        watch, options = self.watch, self.options
        assert watch is not None
        check = self._is_checked(host) or self._opposed
        losses = None
        derived = options.rest or options.keep_host_weights or options.may_be_absent or options.global_losses
        alone = not (check or derived)
        if alone and not self._manual and isinstance(total, Tensor) and total.requires_grad:
            losses = losses_alone(watch)
        if losses is None:
            terms = terms_of(total, watch, remainder=options.rest is not None, check=check, expected=self._expect)
            if terms is None:
                return None
            losses = self._losses(terms)
        else:
            terms = None
        self._require_parts(losses)
        self._reached.update(losses)
        if check and self._steps == 0 and options.count is None and world_size() > 1:
            warnings.warn(
                "over several processes means count alike where no count= is given: with labels missing, or batches "
                "of different sizes, say count= (labels by task in a batch)",
                stacklevel=2,
            )
        self._steps += 1
        weighted: Tensor = host.weigh(counted(losses, self.options, self._batch), stage="train")
        rest = None if terms is None or options.rest != PLAIN else terms.rest
        return weighted if rest is None else weighted + rest

    def evaluate(self, host: Any) -> None:
        """Log the losses of a step of validation."""
        watch = self.watch
        assert watch is not None
        losses: dict[str, Any] = {
            task: torch.stack([sight.value for sight in seen]).mean().to(host.device)
            for task, seen in watch.sights.items()
        }
        if self.options.count is None:
            size = size_of(self._batch)
            losses = {task: (loss * size, size) for task, loss in losses.items()}
        host.weigh(counted(losses, self.options, self._batch), stage="val")

    # -- within --------------------------------------------------------------------------------------------------------

    def _is_checked(self, host: Any) -> bool:
        """Whether this step's total is looked at: in a fit's first steps, and where a step is logged anyway."""
        trainer = getattr(host, "_trainer", None)
        if self._trainer != id(trainer):
            self._trainer, self._steps = id(trainer), 0
        every = getattr(trainer, "log_every_n_steps", 1) or 0
        return self._steps < _CHECKED or bool(every and (self._steps + 1) % every == 0)

    def _require_parts(self, losses: Collection[str]) -> None:
        """Look whether a total has every task that it must have.

        Raises:
            RuntimeError: it has not.
        """
        absent = self.options.may_be_absent
        never = [task for task in self._parts if task not in losses and task not in (*self._reached, *absent)]
        if never:
            raise RuntimeError(
                f"every task's part should be in the host's loss: found none for {', '.join(never)}: "
                f"{self._unseen(never)}; where its labels may be missing in a batch, say may_be_absent="
                f"{sorted({*never, *absent})!r}"
            )

    def _expect(self, total: float, losses: dict[str, float], weights: dict[str, float], rest: float) -> bool:
        """Return whether a total is the tasks', by its numbers; it may be an opponent's under manual optimization.

        Raises:
            RuntimeError: they are not those of a weighted sum of all parts.
        """
        if total != total or abs(total) == float("inf"):
            return True  # weigh tells of a loss that is not finite, or skips it
        if self._manual and weights and all(weight < 0 for weight in weights.values()):
            self._opposed = True  # from now on every total is looked at
            return False
        options = self.options
        self._require_parts(losses)
        if rest and options.rest is None:
            raise RuntimeError(
                f"a host's loss should be a weighted sum of its parts: found {total:.4g}, of which {rest:.4g} no part "
                f"explains, with losses {_by_name(losses)} of weights {_by_name(weights)}; name what is missing, or "
                "say rest='plain' to add it as it is, or rest= a task whose loss it is"
            )
        off = [task for task, weight in weights.items() if weight == 0 and task not in options.may_be_absent]
        if off:
            raise RuntimeError(
                f"a host should give every task a weight: found 0 for {', '.join(off)}, of a task that is switched "
                "off or a total that is not a sum (as a maximum); give it a weight, leave the task out, or say "
                f"may_be_absent={sorted({*off, *options.may_be_absent})!r}"
            )
        negative = [task for task, weight in weights.items() if weight < 0]
        if negative and not options.keep_host_weights:
            raise RuntimeError(
                f"a host's weight should be positive: found {weights[negative[0]]:.4g} for {negative[0]}, which the "
                "host makes large and not small; leave it to rest='plain', or say keep_host_weights=True and give it "
                "the likelihood 'constant'"
            )
        return True

    def _losses(self, terms: Terms) -> dict[str, Any]:
        """Return the losses of a total's terms: with the host's weights if asked, absent ones as pairs that count 0."""
        losses: dict[str, Any] = dict(terms.losses)
        if self.options.rest in self.options.tasks:
            losses[str(self.options.rest)] = terms.rest
        weights, ranks = terms.weights, world_size() if self.options.global_losses else 1
        if ranks > 1:
            seen = [task for task, part in self._parts.items() if not isinstance(part, HostWeight)]
            losses = {task: of_all_ranks(loss, ranks, seen=task in seen) for task, loss in losses.items()}
            weights = {task: weight / ranks for task, weight in weights.items()}
        if self.options.keep_host_weights:
            losses = {task: weights[task] * loss if task in weights else loss for task, loss in losses.items()}
        for task in weights.keys() & set(self.options.may_be_absent):
            there = (losses[task] != 0) & (weights[task] != 0)
            labels = torch.where(there, torch.inf, 0.0)
            losses[task] = Counted((losses[task], there.to(losses[task])), labels)
        return losses

    def _unseen(self, tasks: Iterable[str]) -> str:
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
                if isinstance(part, Logged) and not self.options.follow:
                    found += " (follow=True finds the loss behind detach() and item())"
            elif isinstance(part, HostWeight):
                weight = watch.weights.of(task, list(watch.weights.leaves))
                off = weight is not None and weight.item() == 0
                found = f"is {'0' if off else 'there'}, but the loss does not depend on it"
            else:
                found = "was never reached"
            why.append(f"'{part}' {found}")
        return "; ".join(why)


def _copied(returned: Any) -> Any:
    changed = copy.copy(returned)
    return dict(changed) if not hasattr(changed, "__setitem__") else changed


def _by_name(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
