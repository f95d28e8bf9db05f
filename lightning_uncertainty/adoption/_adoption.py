"""What an adopted module knows of its adoption, and how a step's loss becomes the weighted one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_uncertainty._tensors import world_size
from lightning_uncertainty.adoption._counts import counted, of_all_ranks
from lightning_uncertainty.adoption._evaluation import Evaluation
from lightning_uncertainty.adoption._idling import Idling
from lightning_uncertainty.adoption._looks import LONG
from lightning_uncertainty.adoption._names import OwnNames
from lightning_uncertainty.adoption._options import PLAIN, Options
from lightning_uncertainty.adoption._terms import Terms, losses_alone, terms_of
from lightning_uncertainty.adoption._watch import Plan, Watch
from lightning_uncertainty.adoption.parts import HostWeight
from lightning_uncertainty.likelihoods import Counted

__all__ = ["Adoption"]


class Adoption(Idling):
    """The adoption of a host.

    Attributes:
        options: what was asked for.
        names: what stands under those that the host has to leave free.
        watch: the step that is on; None between steps, as no graph may outlive its step.
        evaluation: what logs losses of validation.
        arrived: whether the module is a copy, as one that came from another process, where it was adopted.
    """

    names: OwnNames

    def __init__(self, options: Options) -> None:
        self.options = options
        self.watch: Watch | None = None
        self.arrived = False
        self._manual = self._opposed = False
        self.evaluation = Evaluation(options)
        self._parts, self._plans = dict(options.parts), dict[bool, Plan]()
        self._batch: Any = None
        self._idle_told, self._why = False, ""
        self._steps, self._idle, self._reached = 0, 0, set[str]()
        self._totals = list[set[str]]()
        self._asked = self._asked_with = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, arrived=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "watch": None, "_batch": None, "_plans": {}}

    # -- a step --------------------------------------------------------------------------------------------------------

    def begin(self, host: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, evaluating: bool = False) -> Watch:
        """Return what watches a step; look at the host's names where a fit begins.

        Raises:
            RuntimeError: the host has taken one of ours.
        """
        if self.names.begins(host):
            host._check_names()
            self._steps = 0
        plan = self._plans.get(evaluating)
        if plan is None:
            plan = self._plans[evaluating] = Plan(dict(self.options.validation) if evaluating else self._parts)
        self.watch = Watch(host, plan, follow=self.options.follow, evaluating=evaluating)
        batch = args[0] if args else next(iter(kwargs.values()), None)
        self._batch = copy.copy(batch) if isinstance(batch, dict | list) else batch  # a host may take things out
        self._manual, self._asked, self._asked_with = not host.automatic_optimization, False, False
        self._totals = []
        return self.watch

    def end(self) -> None:
        """Forget the step."""
        self.watch, self._batch = None, None

    def replace(self, host: Any, returned: Any) -> Any:
        """Return what a step returned with the weighted total in place of its loss.

        Raises:
            RuntimeError: the loss is not made of the parts.
        """
        if returned is None or (isinstance(returned, Mapping) and "loss" not in returned):
            return returned  # the host has Lightning skip this batch, or say what is missing
        if not isinstance(returned, Mapping):
            return self._required(host, returned)
        total = self._required(host, returned["loss"])
        changed: Any = {**returned} if type(returned) is dict else _copied(returned)
        changed["loss"] = total
        return changed

    def _required(self, host: Any, total: Tensor) -> Tensor:
        weighted = self.weigh(host, total)
        if weighted is None and isinstance(total, Tensor) and not total.requires_grad:
            raise RuntimeError(
                "a host's loss should have a graph: found one that depends on nothing that is trained; return it "
                "undetached"
            )
        if weighted is None and self._has_no_labels(host, total):
            return self._weighed(host, {}, total)
        if weighted is None:
            raise RuntimeError(
                "a host's loss should be made of the tasks' parts: found none of them in it: "
                f"{self.unseen(self._parts)}"
            )
        return weighted

    def weigh(self, host: Any, total: Tensor) -> Tensor | None:
        """Return the weighted total in place of a host's; None where it is another optimizer's.

        Raises:
            RuntimeError: the host's is no weighted sum of the parts.
        """
        watch, options = self.watch, self.options
        assert watch is not None
        self._asked, self._asked_with = True, bool(watch.sights)
        check = self.is_checked(host) or self._opposed
        losses = None
        derived = options.rest or options.kept or options.may_be_absent or options.global_losses
        alone = not (check or derived)
        if alone and not self._manual and isinstance(total, Tensor) and total.requires_grad:
            losses = losses_alone(watch)
        if losses is None:
            with watch.told():
                terms = terms_of(
                    total,
                    watch,
                    remainder=options.rest is not None,
                    check=check,
                    kept=options.kept,
                    expected=self.expect,
                )
            if terms is None:
                return None
            if check:
                self.require_graphs(terms.losses)
            losses = self._losses(terms)
        else:
            terms = None
        self.require_parts(losses)
        self.require_same(host, losses)
        self._reached.update(losses)
        if check and self._steps == 0 and options.count is None and world_size() > 1:
            warnings.warn(
                "over several processes means count alike where no count= is given: with labels missing, or batches "
                "of different sizes, say count= (labels by task in a batch)",
                stacklevel=2,
            )
        self._steps += 1
        if self._steps == LONG:
            self.warn_of_absent()
        return self._weighed(host, losses, total, None if terms is None else terms.rest)

    def _has_no_labels(self, host: Any, total: Tensor) -> bool:
        """Whether a batch has none of the parts that others had, and nothing else that nobody explains."""
        watch = self.watch
        assert watch is not None
        if watch.sights or watch.weights.leaves or not self._reached.issuperset(self._parts):
            return False
        return self.options.rest == PLAIN or not (self.is_checked(host) and total.item())

    def _weighed(self, host: Any, losses: Mapping[str, Any], total: Tensor, rest: Tensor | None = None) -> Tensor:
        plain = (rest if losses else total) if self.options.rest == PLAIN else None
        if plain is not None and self.is_broken(host, plain, losses):
            host._task_fit.end_skip()
            skipped: Tensor = host._skip_batch("the rest of the host's loss is not finite", plain.device)
            return skipped
        weighted: Tensor = host.weigh(counted(losses, self.options, self._batch), stage="train")
        if plain is None:
            return weighted if losses else weighted + 0.0 * total
        return weighted + plain

    def evaluate(self, host: Any) -> None:
        """Log the losses of a step of validation."""
        assert self.watch is not None
        self.evaluation.log(host, self.watch, self._batch)

    # -- within --------------------------------------------------------------------------------------------------------

    def _losses(self, terms: Terms) -> dict[str, Any]:
        """Return the losses of a total: with the host's weights where they stay, absent ones as pairs that count 0."""
        losses: dict[str, Any] = dict(terms.losses)
        if self.options.rest in self.options.tasks:
            losses[str(self.options.rest)] = terms.rest
        weights, ranks = terms.weights, world_size() if self.options.global_losses else 1
        if ranks > 1:
            seen = [task for task, part in self._parts.items() if not isinstance(part, HostWeight)]
            losses = {task: of_all_ranks(loss, ranks, seen=task in seen) for task, loss in losses.items()}
            weights = {task: weight / ranks for task, weight in weights.items()}
        self.evaluation.note(weights)
        for task in weights.keys() & set(self.options.kept):
            losses[task] = weights[task] * losses[task]
        for task in weights.keys() & set(self.options.may_be_absent):
            there = (losses[task] != 0) & (weights[task] != 0)
            labels = torch.where(there, torch.inf, 0.0)
            losses[task] = Counted((losses[task], there.to(losses[task])), labels)
        return losses


def _copied(returned: Any) -> Any:
    changed = copy.copy(returned)
    return dict(changed) if not hasattr(changed, "__setitem__") else changed
