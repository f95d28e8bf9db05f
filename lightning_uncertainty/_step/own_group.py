"""A parameter group of log-variances in an optimizer that somebody else builds."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_uncertainty._step.optimizers import BETAS, FACTOR, NAME
from lightning_uncertainty._step.rates import RATIO, check_rates, with_ratio
from lightning_uncertainty.weightings import Weighting

__all__ = ["own_group"]

_BEGIN = ("lr", "initial_lr")
_OF_GROUP = ("max_lr", "min_lr", "swa_lr")
"""What OneCycleLR and SWALR keep in a group."""

_BASES, _PEAKS, _FLOORS = "base_lrs", "max_lrs", "min_lrs"
"""What schedulers keep in lists: all, CyclicLR and ReduceLROnPlateau."""


@contextmanager
def own_group(
    weighting: Weighting,
    *,
    log_variance_lr: float | None = None,
    beside: nn.Module | Iterable[nn.Parameter] | None = None,
) -> Iterator[None]:
    """Have an optimizer that is built within hold the log-variances in a group of their own, whatever it is given.

    For modules whose optimizer is a library's or a base class's. The group is as that of `parameter_groups`: no weight
    decay, ten times the learning rate of the group beside it, betas of its own where the optimizer has two. It is there
    before a scheduler sees the optimizer. Log-variances that the optimizer was given among others are taken out of
    these; those that it was never given are added. A group that is named "log_variances" is left as it is.

    A scheduler within that sets one rate for all groups gets their ratio back: `OneCycleLR`, `CyclicLR`, `SWALR`, and
    the floor of `ReduceLROnPlateau`. The `eta_min` of a cosine stays one for all.

    Args:
        weighting: the module's `task_weighting`; one without parameters needs no group, and nothing is changed.
        log_variance_lr: learning rate of the log-variances; ten times that of the group beside them where None.
        beside: a module or parameters; where several optimizers are built, the one that holds any of these gets the
            group. Where None it is the first that was given log-variances, or, where none was, the first.

    Raises:
        TypeError: it is no weighting.
        ValueError: the rate is no number.
        RuntimeError: no optimizer was built within, or none that holds what they should be beside.

    Example:
        >>> from lightning_uncertainty import UncertaintyWeighting
        >>> from lightning_uncertainty.likelihoods import Gaussian
        >>> import torch
        >>> net, weighting = nn.Linear(3, 1), UncertaintyWeighting().bind({"depth": Gaussian()})
        >>> def theirs():
        ...     return torch.optim.AdamW(net.parameters(), lr=0.01)
        >>> with own_group(weighting):
        ...     optimizer = theirs()
        >>> [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        [(0.01, 0.01), (0.1, 0.0)]
    """
    if not isinstance(weighting, Weighting):
        raise TypeError(
            f"own_group takes a weighting: found a {type(weighting).__name__}; give it `self.task_weighting`"
        )
    if log_variance_lr is not None:
        check_rates(log_variance_lr=log_variance_lr)
    own = list(weighting.parameters())
    if not own:
        yield
        return
    parameters = beside.parameters() if isinstance(beside, nn.Module) else beside
    placing = _Placing(
        own, log_variance_lr, None if parameters is None else {id(parameter) for parameter in parameters}
    )
    init = Optimizer.__init__

    @wraps(init)
    def init_with_group(self: Optimizer, params: Any, defaults: dict[str, Any]) -> None:
        init(self, params if isinstance(self, LBFGS) else placing.place(params, defaults), defaults)

    Optimizer.__init__ = init_with_group  # type: ignore[method-assign]
    try:
        with _noting(placing.schedulers):
            yield
    finally:
        Optimizer.__init__ = init  # type: ignore[method-assign]
    placing.check()
    placing.restore()


@contextmanager
def _noting(made: list[Any]) -> Iterator[None]:
    """Take note of the schedulers that are made within."""
    kinds: tuple[Any, ...] = (LRScheduler, ReduceLROnPlateau)
    inits = [kind.__init__ for kind in kinds]

    def noted(init: Any) -> Any:
        @wraps(init)
        def init_and_note(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            made.append(self)

        return init_and_note

    for kind, init in zip(kinds, inits, strict=True):
        kind.__init__ = noted(init)
    try:
        yield
    finally:
        for kind, init in zip(kinds, inits, strict=True):
            kind.__init__ = init


class _Placing:
    """Places a group of own parameters in one of the optimizers that are built."""

    def __init__(self, own: list[nn.Parameter], lr: float | None, beside: set[int] | None) -> None:
        self.own, self.ids, self.lr, self.beside = own, {id(parameter) for parameter in own}, lr, beside
        self.given: list[bool] = []  # of each optimizer built, whether it was given own parameters
        self.holder: int | None = None  # the one that got the group
        self.schedulers: list[Any] = []
        self.group: dict[str, Any] = {}
        self.other: dict[str, Any] = {}  # the group that it is beside, in the same optimizer

    def place(self, params: Any, defaults: Mapping[str, Any]) -> Any:
        """Return the groups that an optimizer is built of, in place of what it was given."""
        if isinstance(params, Tensor):
            return params  # refused by torch
        given = list(params)
        groups = [dict(group) for group in given] if given and isinstance(given[0], dict) else [{"params": given}]
        for group in groups:
            members = group["params"]
            group["params"] = [members] if isinstance(members, Tensor) else list(members)
        mixed = [group for group in groups if not self.ids.isdisjoint(_ids(group))]
        self.given.append(bool(mixed))
        if any(group.get("name") == NAME for group in mixed):  # as of `parameter_groups`, or of what this one wraps
            self.holder = len(self.given) - 1 if self.holder is None else self.holder
            return groups
        takes = self.holder is None if self.beside is None else not self.beside.isdisjoint(*map(_ids, groups))
        beside = (mixed or groups)[0]
        for group in mixed:
            group["params"] = [member for member in group["params"] if id(_parameter(member)) not in self.ids]
        if takes:
            self.holder = len(self.given) - 1
            self.group = self._group(beside, defaults)
        groups = [group for group in groups if group["params"]]
        if takes:
            self.other = beside if beside["params"] or not groups else groups[0]
            groups.append(self.group)
        return groups

    def _group(self, beside: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        named = any(isinstance(member, tuple) for member in beside["params"])
        members = [(f"{NAME}.{place}", parameter) for place, parameter in enumerate(self.own)] if named else self.own
        theirs = beside.get("lr", defaults.get("lr"))
        rate: Any = FACTOR * theirs if self.lr is None and isinstance(theirs, float | int | Tensor) else self.lr
        own = {"params": list(members), "weight_decay": 0.0, "name": NAME}
        own |= {} if rate is None else {"lr": rate}
        own |= {"betas": BETAS} if len(defaults.get("betas") or ()) == len(BETAS) else {}
        return with_ratio({**beside, **own}, theirs)

    def check(self) -> None:
        """Look whether the group was placed, and where.

        Raises:
            RuntimeError: it was not, or in an optimizer that was not given what a later one was.
        """
        built = len(self.given)
        if self.holder is None:
            found = f"found {built} built, none of which holds any" if built else "found none being built"
            raise RuntimeError(
                f"own_group should see an optimizer being built{' that holds what is named beside' * bool(built)}: "
                f"{found}; call within it what builds the optimizer, as in `with own_group(self.task_weighting): "
                "return super().configure_optimizers()`"
            )
        if built == 1 or self.beside is not None or self.given[self.holder]:
            return
        if any(self.given):
            raise RuntimeError(
                f"log-variances should be in one optimizer: found them given to number {self.given.index(True) + 1} of "
                f"{built}, after number {self.holder + 1} had got them; name what the right one holds, as in "
                "`own_group(self.task_weighting, beside=self.generator)`"
            )
        warnings.warn(
            f"the log-variances are in the first of {built} optimizers, as none was given them: if the weighted total "
            "is stepped by another, name what that holds, as in `own_group(self.task_weighting, "
            "beside=self.generator)`",
            stacklevel=4,
        )

    def restore(self) -> None:
        """Give the group its rate back where a scheduler set one for all groups; warn where that cannot be."""
        ratio, begin = self.group.get(RATIO, 1.0), self.group.get("initial_lr")
        if ratio == 1:
            return
        self._restore_lists(ratio, _FLOORS)
        known = self._restore_lists(ratio, _PEAKS)
        for key in _OF_GROUP:
            if self.group.get(key) and self.group[key] == self.other.get(key):
                self.group[key] *= ratio
                known = True
        if known:
            self._restore_lists(ratio, _BASES)
            for key in _BEGIN:
                if self.group.get(key) and self.group[key] == self.other.get(key):
                    self.group[key] *= ratio
        elif begin and begin == self.other.get("initial_lr"):
            warnings.warn(
                f"the log-variances should have a learning rate {ratio:g} times that of the network: found a "
                "scheduler that gives both one rate; give it rates by group, or take own_group(..., "
                "log_variance_lr=...) with a scheduler that multiplies rates",
                stacklevel=4,
            )
            self.group[RATIO] = 1.0  # as it is now: the first step of a fit need not tell it again

    def _restore_lists(self, ratio: float, name: str) -> bool:
        """Give a list of schedulers its ratio back where it has one rate for both; return whether there was one."""
        found = False
        for scheduler in {id(scheduler): scheduler for scheduler in self.schedulers}.values():
            groups = [id(group) for group in scheduler.optimizer.param_groups]
            rates = list(getattr(scheduler, name, ()))
            if id(self.group) in groups and len(rates) == len(groups):
                own, other = groups.index(id(self.group)), groups.index(id(self.other))
                if rates[own] and rates[own] == rates[other]:
                    rates[own] = rates[own] * ratio
                    setattr(scheduler, name, rates)
                    found = True
        return found


def _parameter(member: Any) -> Any:
    """A parameter that is given alone, or with a name."""
    return member[1] if isinstance(member, tuple) else member


def _ids(group: Mapping[str, Any]) -> set[int]:
    return {id(_parameter(member)) for member in group["params"]}
