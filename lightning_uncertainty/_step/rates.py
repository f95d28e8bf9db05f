"""Learning rates of groups that somebody set all alike."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from lightning_uncertainty._tensors import is_number

__all__ = ["RATIO", "check_rates", "restore_rates", "with_ratio"]

RATIO = "lr_ratio"
"""Of a parameter group: its learning rate over that of the network."""

_FINDER, _SEARCH, _AVERAGING = "LearningRateFinder", "_LRCallback", "StochasticWeightAveraging"  # of both packages


def check_rates(**rates: Any) -> None:
    """Look whether rates, by the names of their arguments, are numbers.

    Raises:
        ValueError: one is not.
    """
    for name, rate in rates.items():
        if not (isinstance(rate, Tensor) or is_number(rate)):
            mend = "; a file of YAML has to say 1.0e-3, as 1e-3 is a text there" if isinstance(rate, str) else ""
            raise ValueError(f"{name} should be a number: found {rate!r}{mend}")


def with_ratio(group: Mapping[str, Any], network_lr: Any) -> dict[str, Any]:
    """Return a group that knows the ratio of its rate to the network's, where both are numbers and that is not 0."""
    rate = group.get("lr")
    if rate is None or not network_lr:
        return dict(group)
    return {**group, RATIO: float(rate) / float(network_lr)}


def restore_rates(callbacks: Iterable[Any], optimizers: Iterable[Any], own: Iterable[Any]) -> None:
    """Give groups their ratios back where `LearningRateFinder` has set one rate for all, as it does as a callback.

    Warn where another has: a scheduler, as `OneCycleLR` with one `max_lr`, or `StochasticWeightAveraging`, which will;
    and where nobody knows the ratio of log-variances that are in a group of theirs.

    Args:
        callbacks: of the Trainer.
        optimizers: of the Trainer.
        own: the log-variances.
    """
    kinds = {kind.__name__: callback for callback in callbacks for kind in type(callback).__mro__}
    if _SEARCH in kinds:
        return  # which is one over a single rate
    ids = {id(parameter) for parameter in own}
    for optimizer in optimizers:
        groups = optimizer.param_groups
        known = [group for group in groups if group.get(RATIO, 1.0) != 1]
        unknown = any(
            RATIO not in group and group["params"] and ids.issuperset(map(id, group["params"])) for group in groups
        )
        if len(groups) == 1 or not (known or unknown):
            continue
        rate = next((group["lr"] for group in groups if group.get(RATIO, 1.0) == 1), 0.0)
        if rate and all(group["lr"] == rate for group in groups):
            if _FINDER in kinds and known:
                for group in known:
                    group["lr"] = group[RATIO] * rate
            elif _FINDER in kinds:
                _warn(known, _FINDER, "build the optimizer from `self.parameter_groups(lr=...)` or within own_group")
            elif known:
                _warn(known, "a scheduler", "give it a rate for each group, as in `OneCycleLR(max_lr=[lr, 10 * lr])`")
        averaged = getattr(kinds.get(_AVERAGING), "_swa_lrs", [])  # a list once it has begun
        if known and (isinstance(averaged, float) or len({*averaged}) == 1):
            _warn(known, _AVERAGING, f"give it a rate for each of {len(groups)} groups, as in `swa_lrs=[lr, 10 * lr]`")


def _warn(known: Iterable[Mapping[str, Any]], who: str, mend: str) -> None:
    wanted = ", ".join(f"{group.get('name', 'a group')} {group[RATIO]:g} times the network's" for group in known)
    warnings.warn(
        f"parameter groups should keep learning rates of their own{f' ({wanted})' * bool(wanted)}: found one for all, "
        f"from {who}; {mend}",
        stacklevel=4,
    )
