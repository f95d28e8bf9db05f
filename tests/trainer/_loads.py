"""Checkpoints that do not fit: of other tasks, of another weighting, damaged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from tests.trainer._fuzz import NAMES, OPTIONS, Setup, setups

NAMES_KEY = "task_weighting._extra_state"
DAMAGES: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "none": lambda state, key: None,
    "names lost": lambda state, key: state.pop(NAMES_KEY),
    "names None": lambda state, key: state.update({NAMES_KEY: None}),
    "names a placeholder": lambda state, key: state.update({NAMES_KEY: torch.zeros(1)}),
    "double": lambda state, key: state.update({key: state[key].double()}),
    "half": lambda state, key: state.update({key: state[key].half()}),
    "NaN": lambda state, key: state.update({key: state[key] * math.nan}),
    "vector lost": lambda state, key: state.pop(key),
    "vector too long": lambda state, key: state.update({key: torch.cat([state[key], state[key][:1]])}),
    "vector a matrix": lambda state, key: state.update({key: state[key].repeat(2, 1)}),
    "no names": lambda state, key: state.update({NAMES_KEY: {"version": 1}}),
    "too few names": lambda state, key: state[NAMES_KEY]["tasks"].pop(),
}
LOST = {"names lost", "names None", "names a placeholder"}
CHANGES = {"double", "half", "NaN"}
REFUSED = DAMAGES.keys() - LOST - CHANGES - {"none"}


@st.composite
def loads(draw: st.DrawFn) -> tuple[Setup, Setup, dict[str, str]]:
    """An older setup, one of today with some of its tasks, and the names that have changed."""
    old = draw(setups())
    kinds, renamed = {}, {}
    for name in draw(st.permutations(old.tasks)):
        fate = draw(st.sampled_from(["kept", "kept", "kept", "dropped", "renamed"]))
        if fate == "kept":
            kinds[name] = old.kinds[name]
        elif fate == "renamed":
            renamed[name] = draw(st.sampled_from(["new", "newer", *NAMES]))
    added = draw(st.sets(st.sampled_from(["more", "most"]), min_size=0 if kinds or renamed else 1))
    for new in [*renamed.values(), *sorted(added)]:
        kinds.setdefault(new, draw(st.sampled_from(list(old.kinds.values()))))
    renamed = {old: new for old, new in renamed.items() if old not in kinds}
    kind = draw(st.sampled_from([old.kind, old.kind, old.kind, *OPTIONS]))
    return old, Setup(kinds, kind, draw(OPTIONS[kind](kinds))), renamed
