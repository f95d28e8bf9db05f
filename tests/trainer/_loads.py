"""Checkpoints that do not fit: of other tasks, of another weighting, damaged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from lightning_uncertainty._tensors import text_of
from lightning_uncertainty.weightings._task_vectors import task_id
from tests.trainer._fuzz import NAMES, OPTIONS, Setup, setups

NAMES_KEY, HASHES_KEY = "task_weighting._extra_state", "task_weighting.task_ids"


def names_in(state: dict[str, Any]) -> list[str]:
    return [text_of(row) for row in state[NAMES_KEY]]


def as_before(state: dict[str, Any]) -> None:
    """Names were a dict."""
    state[NAMES_KEY] = {"version": 1, "tasks": names_in(state)}


def hashes_alone(state: dict[str, Any]) -> None:
    """A checkpoint of before, of which someone kept the tensors."""
    state[HASHES_KEY] = torch.tensor([task_id(name) for name in names_in(state)])
    del state[NAMES_KEY]


DAMAGES: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "none": lambda state, key: None,
    "of before": lambda state, key: as_before(state),
    "hashes alone": lambda state, key: hashes_alone(state),
    "averaged": lambda state, key: state.update({NAMES_KEY: (state[NAMES_KEY] * 0.99).long()}),
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
    "too few names": lambda state, key: state.update({NAMES_KEY: state[NAMES_KEY][:-1]}),
}
CHANGES = {"double", "half", "NaN"}
REFUSED = DAMAGES.keys() - CHANGES - {"none", "of before", "hashes alone", "averaged"}


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
