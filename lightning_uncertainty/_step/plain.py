"""Checkpoints as the host alone would have written them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_uncertainty._step.names import PACKAGE, is_ours

__all__ = ["OWN_CALLBACKS", "OWN_PARTS", "own_prefixes", "plain_checkpoint", "without"]

OWN_PARTS = ("task_weighting", "task_calibration", "task_metrics")
"""What `register_tasks` adds to a module; heads are the network's."""

OWN_CALLBACKS = (
    "GradientConflictMonitor",
    "PredictionImages",
    "PredictionWriter",
    "UncertaintyMonitor",
    "UncertaintyWarmUp",
)

_STATES = ("state_dict", "current_model_state")  # the latter beside an average of weights


def own_prefixes(module: nn.Module, kind: type) -> tuple[str, ...]:
    """Return how keys of a module's state begin that are ours, in it and in every module of that kind within it."""
    paths = [path for path, part in module.named_modules() if isinstance(part, kind)]
    return tuple(f"{path}{'.' if path else ''}{part}." for path in paths for part in OWN_PARTS)


def without(state: Mapping[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    """Return the entries whose keys begin otherwise."""
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


def plain_checkpoint(
    checkpoint: Mapping[str, Any],
    prefixes: tuple[str, ...],
    parameters: Iterable[tuple[str, nn.Parameter]],
) -> dict[str, Any]:
    """Return a checkpoint of Lightning without what is ours; the given one stays as it is.

    Args:
        checkpoint: what Lightning writes.
        prefixes: how keys begin that are ours.
        parameters: the module's, by name, in order.

    Raises:
        ValueError: an optimizer holds log-variances, and nothing tells which of its parameters they are.
    """
    plain = dict(checkpoint)
    prefixes += _prefixes_in(plain)
    for key in _STATES:
        if key in plain:
            plain[key] = without(plain[key], prefixes)
    if "callbacks" in plain:
        plain["callbacks"] = {
            key: state for key, state in plain["callbacks"].items() if key.split("{")[0] not in OWN_CALLBACKS
        }
    for key in [key for key in plain if key.endswith("hyper_parameters")]:
        plain[key] = {name: value for name, value in plain[key].items() if not _needs_us(value)}
    states = plain.get("optimizer_states", [])
    own = _own_places(states, prefixes, list(parameters))
    plain["optimizer_states"] = [_plain_optimizer(*pair)[0] for pair in zip(states, own, strict=True)]
    gone = [_plain_optimizer(*pair)[1] for pair in zip(states, own, strict=True)]
    if not states:
        plain.pop("optimizer_states")
    if "lr_schedulers" in plain and any(gone):
        plain["lr_schedulers"] = [_plain_scheduler(state, states, gone) for state in plain["lr_schedulers"]]
    return plain


def _prefixes_in(checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    """Return how keys of a checkpoint begin that are ours, wherever in its module one of us is."""
    mark = f"{OWN_PARTS[0]}._extra_state"
    keys = [key for name in _STATES for key in checkpoint.get(name, ()) if f".{key}".endswith(f".{mark}")]
    return tuple(f"{key.removesuffix(mark)}{part}." for key in dict.fromkeys(keys) for part in OWN_PARTS)


def _needs_us(value: Any) -> bool:
    """Whether a value is an object of ours, or holds one, or says how to make one."""
    if isinstance(value, Mapping):
        named = str(value.get("class_path", "")).startswith(f"{PACKAGE}.")
        return named or any(_needs_us(part) for part in value.values())
    if isinstance(value, list | tuple | set):
        return any(_needs_us(part) for part in value)
    return is_ours(type(value))


def _own_places(
    states: Sequence[Mapping[str, Any]], prefixes: tuple[str, ...], parameters: Sequence[tuple[str, nn.Parameter]]
) -> list[set[Any]]:
    """Return which of every optimizer's parameters are ours, by place, or by name where they have names."""
    groups = [group for state in states for group in state["param_groups"]]
    held = [parameter for group in groups for parameter in group["params"]]
    if not held:
        return [set() for _ in states]
    if any(isinstance(parameter, str) for parameter in held):  # as FSDP2 saves them
        return [{name for name in held if name.startswith(prefixes)} for _ in states]
    if any(group.get("name") == "log_variances" for group in groups):
        return [
            {at for group in state["param_groups"] if group.get("name") == "log_variances" for at in group["params"]}
            for state in states
        ]
    trained = [name for name, parameter in parameters if parameter.requires_grad]
    for names in ([name for name, _ in parameters], trained):
        own = {place for place, name in enumerate(names) if name.startswith(prefixes)}
        if not own or len(held) == len(names) - len(own):  # there are none, or they are in no optimizer
            return [set() for _ in states]
        if len(groups) == 1 and len(held) == len(names):
            return [own]
    raise ValueError(
        "an optimizer should tell which parameters are log-variances, by the group that parameter_groups makes of them "
        f"or by holding all {len(parameters)} parameters in one group: found {len(held)} in {len(groups)} groups; pop "
        "optimizer_states and lr_schedulers from the checkpoint, and fit the host anew from its weights"
    )


def _plain_optimizer(state: Mapping[str, Any], own: set[Any]) -> tuple[dict[str, Any], list[int]]:
    """Return an optimizer's state without some parameters, and which of its groups are gone with them."""
    held = [parameter for group in state["param_groups"] for parameter in group["params"]]
    left = [parameter for parameter in held if parameter not in own]
    place = {old: old if isinstance(old, str) else new for new, old in enumerate(left)}
    groups, gone = [], []
    for index, group in enumerate(state["param_groups"]):
        params = [place[parameter] for parameter in group["params"] if parameter in place]
        if params or not group["params"]:
            groups.append({**group, "params": params})
        else:
            gone.append(index)
    moments = {place[old]: moment for old, moment in state["state"].items() if old in place}
    return {**state, "state": moments, "param_groups": groups}, gone


def _plain_scheduler(state: Any, states: Sequence[Mapping[str, Any]], gone: Sequence[list[int]]) -> Any:
    """Return a scheduler's state without the numbers of groups that are gone, and of schedulers within it."""
    if not isinstance(state, dict):
        return state
    counts = {len(each["param_groups"]): lost for each, lost in zip(states, gone, strict=True)}
    rates = state.get("_last_lr", state.get("base_lrs"))
    lost = counts.get(len(rates), []) if isinstance(rates, list) else []
    by_group = {"base_lrs", "_last_lr", "min_lrs", "max_lrs", "lr_lambdas", "base_momentums", "max_momentums"}
    plain = {}
    for key, value in state.items():
        if key == "_schedulers":
            plain[key] = [_plain_scheduler(part, states, gone) for part in value]
        elif key in by_group and isinstance(value, list):
            plain[key] = [number for index, number in enumerate(value) if index not in lost]
        else:
            plain[key] = value
    return plain
