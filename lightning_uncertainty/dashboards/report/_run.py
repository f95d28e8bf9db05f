"""What a run logged, and where in it the tasks are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lightning_uncertainty.dashboards.report._curves import Curve, curves_of

__all__ = ["STAGES", "Run"]

STAGES = ("train", "val", "test")
_WEIGHT = re.compile(r"(.*?)(?:loss_share|weight)/([^/]+)")
_NAMED = 8  # keys that an error lists


@dataclass(frozen=True)
class Run:
    """What a run logged.

    Attributes:
        title: what readers call it.
        rows: log keys and their values; every row has "step" too, and training and held-out rows may be mixed.
        config: its hyper-parameters; what `UncertaintyMonitor` says of itself is under "uncertainty".

    Raises:
        ValueError: there are no rows, or `UncertaintyMonitor` wrote none of them.

    Example:
        >>> run = Run("birds", [{"step": 9, "uw/weight/mass": 0.1}, {"step": 19, "uw/weight/mass": 0.2}], {})
        >>> run.tasks, run.prefix, run.training("weight", "mass").values
        (('mass',), 'uw/', [0.1, 0.2])
    """

    title: str
    rows: Sequence[Mapping[str, float]]
    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.curves:
            raise ValueError(
                f"a report needs a run with logged rows: found none in {self.title}; wait for its first row, or "
                "fit with log_every_n_steps above 0 and of no more than the steps of the fit"
            )
        if not self._found:
            keys = list(self.curves)
            more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
            held_out = f"({'|'.join(STAGES[1:])})/"
            why = []
            if "uncertainty" in self.config or all(re.match(rf"(.*-)?{held_out}", key) for key in keys):
                why.append("wait for its first row, or fit with log_every_n_steps of no more than the steps of the fit")
            if "uncertainty" not in self.config:
                why.append("add UncertaintyMonitor() to the Trainer's callbacks")
            raise ValueError(
                "a report needs a training row of UncertaintyMonitor, with keys such as loss_share/<task>: found "
                f"{', '.join(keys[:_NAMED])}{more} in {self.title}; {'; or '.join(why)}"
            )

    # -- where things are ----------------------------------------------------------------------------------------------

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Every key's curve; of several values at one step the last."""
        return curves_of(self.rows)

    @cached_property
    def _found(self) -> Counter[str]:
        """Prefixes of keys that hold weights, and how many keys have them."""
        return Counter(match[1] for key in self.curves if (match := _WEIGHT.fullmatch(key)))

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """What the monitor wrote of itself into the config; empty where it did not."""
        about = self.config.get("uncertainty")
        return about if isinstance(about, Mapping) else {}

    @cached_property
    def prefix(self) -> str:
        """What stands before the training keys: the monitor's prefix, after that of the logger."""
        own = str(self.about.get("prefix", ""))
        return max(self._found, key=lambda prefix: (prefix.endswith(own), self._found[prefix]))

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the config, then of the keys."""
        matches = filter(None, map(_WEIGHT.fullmatch, self.curves))
        logged = [match[2] for match in matches if match[1] == self.prefix]
        return tuple(dict.fromkeys([*self.likelihoods, *logged]))

    @property
    def weighting(self) -> str:
        """How losses became one scalar; "" where the config does not say."""
        return str(self.about.get("weighting", ""))

    @property
    def likelihoods(self) -> dict[str, str]:
        """Names of the likelihoods by task, where the config says them."""
        return _texts(self.about.get("likelihood"))

    @property
    def sigma_is(self) -> dict[str, str]:
        """What σ is at its optimum by task, where the config says it."""
        return _texts(self.about.get("sigma_is"))

    def label(self, task: str, metric: str) -> str:
        """Return what a metric of a task is called: RMSE, where its class is MeanSquaredError and takes the root."""
        found = self.about.get("metrics")
        return _texts(found).get(f"{task}/{metric}", metric)

    # -- what was logged -----------------------------------------------------------------------------------------------

    @property
    def last_step(self) -> int:
        """The last logged step."""
        return max(int(curve.x[-1]) for curve in self.curves.values())

    def training(self, kind: str, task: str) -> Curve | None:
        """Return the curve of "loss", "sigma", "sigma_gap", "weight" or "loss_share" of a task, if it was logged."""
        return self.curves.get(f"{self.prefix}{kind}/{task}")

    @cached_property
    def held_out(self) -> dict[tuple[str, str, str], Curve]:
        """Curves by stage, task and metric ("loss" is one), as the module logs them."""
        names = "|".join(map(re.escape, self.tasks))
        key = re.compile(rf"(?:.*-)?({'|'.join(STAGES)})/({names})/(.+)")  # loggers join a prefix of theirs by "-"
        matches = ((key.fullmatch(name), curve) for name, curve in self.curves.items())
        found = {(match[1], match[2], match[3]): curve for match, curve in matches if match}
        order = sorted(found, key=lambda where: (self.tasks.index(where[1]), where[2], STAGES.index(where[0])))
        return {where: found[where] for where in order}

    @cached_property
    def balanced(self) -> dict[str, Curve]:
        """Curves of the balanced loss by stage."""
        key = re.compile(rf"(?:.*-)?({'|'.join(STAGES)})/balanced_loss")
        found = {match[1]: curve for name, curve in self.curves.items() if (match := key.fullmatch(name))}
        return {stage: found[stage] for stage in STAGES if stage in found}


def _texts(found: Any) -> dict[str, str]:
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, Mapping) else {}
