"""Arguments of `register_tasks`: mostly right, with wrong ones here and there, and whether they are right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from torch import nn

from lightning_uncertainty import Task
from lightning_uncertainty.likelihoods import LIKELIHOODS
from lightning_uncertainty.tasks.by_name import TaskHeads
from tests.trainer._fuzz import HUGE, NAMES, Setup, by_name, setups

BAD_NAMES = ["", "a.b", "type", "training", "renamed", "_modules", "1st", "tâche", "a b", "x\n", 3, None]
BAD_KINDS = ["gausian", "", "Gaussian"]


@dataclass(frozen=True)
class Registration:
    """Arguments of `register_tasks`, of which each may be wrong."""

    tasks: list[tuple[Any, str]]
    setup: Setup
    renamed: dict[str, str]
    on_nonfinite: str
    bound: bool
    heads: bool

    @property
    def names(self) -> list[Any]:
        """Return the names of the tasks."""
        return [name for name, _ in self.tasks]

    def arguments(self) -> dict[str, Any]:
        """Return them; a weighting may refuse its own."""
        weighting = self.setup.kind(**self.setup.options)
        if self.bound:
            weighting.bind({"other": LIKELIHOODS["gaussian"]()})
        pairs = [(name, Task(kind, nn.Linear(1, 1)) if self.heads else kind) for name, kind in self.tasks]
        tasks = dict(pairs) if len(set(self.names)) == len(pairs) else pairs  # a dict cannot name one twice
        return {"tasks": tasks, "weighting": weighting, "renamed": self.renamed, "on_nonfinite": self.on_nonfinite}

    @property
    def sound(self) -> bool:
        """Whether all of it is right, as the documentation has it."""
        kinds = dict(self.tasks)
        return (
            0 < len(kinds) == len(self.tasks)
            and all(_usable(name) for name in kinds)
            and all(kind in LIKELIHOODS for _, kind in self.tasks)
            and not self.bound
            and self.on_nonfinite in ("raise", "skip_step")
            and all(old not in kinds and new in kinds for old, new in self.renamed.items())
            and _sound_options(kinds, self.setup.options)
        )


def _usable(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and name.isascii() and not hasattr(TaskHeads(), name)


def _sound_options(kinds: Mapping[Any, str], options: Mapping[str, Any]) -> bool:
    """Whether a weighting may have such options."""
    given = {key: options.get(key) or {} for key in ("base_weights", "weights", "preferences", "ideal")}
    start, bounds, groups = options.get("start"), options.get("bounds"), options.get("shared", ())
    gamma, kpis = options.get("gamma", 1.0), options.get("kpis", 1.0)
    exponents = gamma if isinstance(gamma, dict) else dict.fromkeys(kinds, gamma)
    starts = start if isinstance(start, dict) else {} if start is None else dict.fromkeys(kinds, start)
    pairs = bounds if isinstance(bounds, dict) else {} if bounds is None else dict.fromkeys(kinds, bounds)
    grouped = [name for group in groups for name in group]
    named = [*exponents, *starts, *pairs, *grouped, *(name for values in given.values() for name in values)]
    numbers = [number for key, values in given.items() for number in values.values() if key != "ideal"]
    epoch = options.get("nadir_epoch")
    alike = {name: (kinds.get(name), pairs.get(name), starts.get(name)) for name in grouped}
    return (
        all(name in kinds for name in named)
        and all(0 <= number <= HUGE for number in numbers)
        and all(abs(number) <= HUGE for number in starts.values())
        and all(low < high for low, high in pairs.values())
        and all(pairs[name][0] <= number <= pairs[name][1] for name, number in starts.items() if name in pairs)
        and len(set(grouped)) == len(grouped)
        and all(len({alike[name] for name in group}) <= 1 for group in groups)
        and 0 < options.get("temperature", 1.0) < math.inf
        and 0 <= options.get("decay", 0.5) < 1
        and abs(options.get("mean_log_variance", 0.0)) <= HUGE
        and (options.get("memory") is None or 1 <= options["memory"] <= 1e6)
        and isinstance(options.get("seed", 0), int)
        and (epoch is None or (isinstance(epoch, int) and not given["ideal"]))
        and all(abs(number) <= HUGE for number in given["ideal"].values())
        and 0 < kpis < math.inf
        and all(0 <= number <= HUGE for number in exponents.values())
    )


@st.composite
def registrations(draw: st.DrawFn) -> Registration:
    """Mostly right, with a wrong argument here and there."""
    setup = draw(setups())
    tasks: list[tuple[Any, str]] = list(setup.kinds.items())
    options = dict(setup.options)
    faults = st.sampled_from(
        ["option"] * 4 + ["name", "name", "kind", "twice", "none", "bound", "nonfinite", "renamed"]
    )
    wrong = draw(st.just(set()) | faults.map(lambda fault: {fault}) | st.sets(faults, min_size=2, max_size=3))
    if "name" in wrong:
        tasks.insert(0, (draw(st.sampled_from(BAD_NAMES)), "gaussian"))
    if "kind" in wrong:
        tasks.append(("z", draw(st.sampled_from(BAD_KINDS))))
    if "twice" in wrong:
        tasks.append(tasks[0])
    if "option" in wrong and options:
        option = draw(st.sampled_from(sorted(options)))
        options[option] = draw(_wrong_options(option, [*setup.tasks, "other"]))
    renamed = draw(by_name(["old", "older"], st.sampled_from(setup.tasks)))
    if "renamed" in wrong:
        renamed |= draw(by_name([*NAMES, "old"], st.sampled_from([*setup.tasks, "other"])))
    return Registration(
        tasks=[] if wrong == {"none"} else tasks,
        setup=Setup(setup.kinds, setup.kind, options),
        renamed=renamed,
        on_nonfinite="skip" if "nonfinite" in wrong else draw(st.sampled_from(["raise", "skip_step"])),
        bound="bound" in wrong,
        heads=draw(st.booleans()),
    )


def _wrong_options(option: str, names: list[str]) -> st.SearchStrategy[Any]:
    """What an option of this name could be, right or wrong."""
    numbers = st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, 1.0, 1e39, -1e39])
    if option in ("base_weights", "weights", "preferences", "ideal"):
        return by_name(names, numbers, least=1)
    if option in ("start", "gamma"):
        return numbers | by_name(names, numbers)
    if option == "bounds":
        pairs = st.tuples(numbers, numbers)
        return pairs | by_name(names, pairs)
    if option == "shared":
        return st.lists(st.lists(st.sampled_from(names), min_size=1, max_size=3), max_size=2)
    return numbers
