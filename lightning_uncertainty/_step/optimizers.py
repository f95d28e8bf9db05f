"""Optimizers and log-variances: a parameter group, clipping apart, and what would spoil training unseen."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from lightning_uncertainty._step.rates import with_ratio

__all__ = [
    "BETAS",
    "FACTOR",
    "NAME",
    "check_optimizers",
    "check_resumed",
    "check_shards",
    "clip_separately",
    "grouped",
    "split",
    "take_apart",
]

_THEIRS = (
    "where a library builds it, within `with own_group(self.task_weighting):`, or take AnalyticUncertaintyWeighting, "
    "which needs none"
)

Parameters = list[nn.Parameter]

BETAS = (0.9, 0.99)
"""Of Adam's moments of a log-variance: about 10 and 100 steps."""

FACTOR = 10.0
"""Of the network's learning rate is that of log-variances, unless named."""

NAME = "log_variances"
"""Of their parameter group."""


def split(parameters: Iterable[nn.Parameter], own: Parameters) -> tuple[Parameters, Parameters]:
    """Return the others, and those that are `own`."""
    ids = {id(parameter) for parameter in own}
    parts: tuple[Parameters, Parameters] = ([], [])
    for parameter in parameters:
        parts[id(parameter) in ids].append(parameter)
    return parts


def take_apart(parameters: Parameters, groups: Iterable[Parameters]) -> Parameters:
    """Return the parameters that are in none of the groups.

    Raises:
        ValueError: a group holds another's parameter, or one that is not among them.
    """
    rest = parameters
    for group in groups:
        rest, found = split(rest, group)
        if len(found) != len(group):
            raise ValueError(
                f"groups should hold parameters of the network, each once: found {len(group) - len(found)} that "
                "another group holds, or that are none of the network's; name each in one group"
            )
    return rest


def grouped(
    network: Parameters,
    own: Parameters,
    network_options: Mapping[str, Any],
    own_options: Mapping[str, Any],
    groups: Iterable[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return parameter groups: the network, those of its parts that are `groups`, and its `own` where there are any.

    Raises:
        ValueError: as `take_apart`.
    """
    apart = [{**network_options, **given, "params": list(given["params"])} for given in groups]
    rest = take_apart(network, [given["params"] for given in apart])
    others = [*apart, {**own_options, "params": own, "name": NAME}] if own else apart
    lr = network_options["lr"]
    return [{**network_options, "params": rest}, *(with_ratio(group, lr) for group in others)]


def clip_separately(optimizer: Optimizer, own: Parameters, value: float | None, algorithm: str | None) -> None:
    """Clip an optimizer's gradients, those of `own` parameters by a norm of theirs.

    Raises:
        ValueError: there is no such algorithm.
    """
    clips: dict[str, Callable[[Parameters, float], Any]]
    clips = {"norm": nn.utils.clip_grad_norm_, "value": nn.utils.clip_grad_value_}
    algorithm = algorithm or "norm"
    if algorithm not in clips:
        raise ValueError(f"gradient_clip_algorithm should be one of {', '.join(clips)}: found {algorithm!r}")
    if not value:
        return
    for part in split((parameter for group in optimizer.param_groups for parameter in group["params"]), own):
        clips[algorithm](part, value)


def check_optimizers(network: Parameters, own: Parameters, optimizers: Sequence[Any], *, remembers: bool) -> None:
    """Look at how optimizers hold the log-variances; warn where they are frozen or decayed.

    Args:
        network: the parameters of all else.
        own: the log-variances.
        optimizers: those of the Trainer.
        remembers: whether the weighting changes in a step, be it without log-variances.

    Raises:
        RuntimeError: they are in no optimizer or in several, or one evaluates a batch several times.
    """
    if remembers and any(isinstance(optimizer, LBFGS) for optimizer in optimizers):
        raise RuntimeError(
            "a weighting that learns or remembers should have optimizers that evaluate a batch once a step: found "
            "LBFGS, which does so many times, each a step of the weighting; use "
            "`torch.optim.AdamW(self.parameter_groups(lr=...))`, and for a last phase of LBFGS a module with "
            "`weighting=net.fixed_weighting()`, the weights that were learnt, or FixedWeighting"
        )
    holders = [
        (number, optimizer, group)
        for number, optimizer in enumerate(optimizers, 1)
        for group in optimizer.param_groups
        if not {id(parameter) for parameter in group["params"]}.isdisjoint(id(parameter) for parameter in own)
    ]
    known = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if not own or known.isdisjoint(id(parameter) for parameter in [*network, *own]):
        return  # nothing to learn, no Trainer, or a strategy has wrapped the parameters
    frozen = not all(parameter.requires_grad for parameter in own)
    if len(holders) != 1 and not (frozen and not holders):
        raise RuntimeError(
            f"the log-variances should be in one optimizer: found them in {_named(holders, optimizers)}, so "
            f"{'they would be stepped twice' if holders else 'σ would never move'}; build it from "
            f"`self.parameter_groups(lr=...)`, or, {_THEIRS}"
        )
    if holders:
        _fit_betas(*holders[0][1:])
    if frozen:
        warnings.warn(
            "the log-variances are frozen (requires_grad is False), so σ will not move: to train them call "
            "`self.task_weighting.requires_grad_(True)` before the optimizer is built; what freezes all that it wraps, "
            "as get_peft_model does, should wrap the network and not the module with the tasks",
            stacklevel=2,
        )
    decay = holders[0][2].get("weight_decay", 0.0) if holders else 0.0
    if decay:
        where = f" in {_named(holders, optimizers)}" if len(optimizers) > 1 else ""
        warnings.warn(
            f"the log-variances are under weight decay {decay:g}{where}, which pulls σ back to where it started (at "
            "0.1 from 10 to 6.9, measured with AdamW and start=0): give the optimizer `self.parameter_groups(lr=..., "
            f"weight_decay={decay:g})`, which leaves them out, or, {_THEIRS}",
            stacklevel=2,
        )


def _named(holders: Sequence[tuple[int, Any, Any]], optimizers: Sequence[Any]) -> str:
    """Say which of the optimizers hold something."""
    found = [f"number {number}, {type(optimizer).__name__}" for number, optimizer, _ in holders]
    if not found:
        return f"none of {len(optimizers)}" if len(optimizers) > 1 else "none"
    return f"{len(found)} ({'; '.join(found)})" if len(found) > 1 else found[0]


def check_resumed(optimizers: Sequence[Any], by_task: Iterable[nn.Parameter]) -> None:
    """Look whether optimizers hold a state, which is by position, of parameters whose tasks are others now.

    Raises:
        RuntimeError: so it is.
    """
    if any(optimizer.state.get(parameter) for optimizer in optimizers for parameter in by_task):
        raise RuntimeError(
            "a checkpoint of other tasks cannot be resumed, as its optimizer state is by position: load its "
            "weights (`load_from_checkpoint(..., strict=False)`) and fit anew, without ckpt_path"
        )


def _fit_betas(optimizer: Any, group: dict[str, Any]) -> None:
    """Take our betas from an optimizer that has none, or has not two: it then has its own."""
    own = getattr(optimizer, "defaults", group).get("betas") or ()
    if group.get("betas") == BETAS and len(own) != len(BETAS):
        group.pop("betas")
        group.update({"betas": own} if own else {})


def check_shards(module: nn.Module, own: Parameters) -> None:
    """Look whether FSDP2 shards only a part of a module, as it reduces the gradients of no other; warn if so.

    Raises:
        RuntimeError: it leaves out the log-variances.
    """
    if not torch.distributed.is_available() or all(
        type(parameter) is nn.Parameter for parameter in module.parameters()
    ):
        return
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    if not any(isinstance(part, FSDPModule) for part in module.modules()):
        return
    if not all(isinstance(parameter, DTensor) for parameter in own):
        raise RuntimeError(
            "the log-variances should be sharded where the network is, or each process would train its own: found "
            "them left out; add `fully_shard(self.task_weighting, mesh=self.device_mesh['data_parallel'])` to "
            "configure_model"
        )
    trained = ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)
    left_out = [name for name, parameter in trained if not isinstance(parameter, DTensor)]
    if left_out:
        warnings.warn(
            "parameters should be sharded all or none, or each process trains its own of the others: found "
            f"{', '.join(left_out)} left out; give their modules to fully_shard in configure_model, too",
            stacklevel=2,
        )
