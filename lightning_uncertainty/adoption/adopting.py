"""A LightningModule whose code is not yours becomes uncertainty-weighted, in place, and can be given back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lightning_uncertainty._tensors import by_name
from lightning_uncertainty.adoption._adopted import NAMES, Adopted, adopted_class
from lightning_uncertainty.adoption._adoption import Adoption
from lightning_uncertainty.adoption._host_shaped import shape_states, unshape_states
from lightning_uncertainty.adoption._hosts import check_host, check_optimizer, check_paths, check_shared
from lightning_uncertainty.adoption._names import OwnNames
from lightning_uncertainty.adoption._naming import Parts, as_part, as_parts
from lightning_uncertainty.adoption._options import PLAIN, Count, Options
from lightning_uncertainty.adoption._structure import base_of
from lightning_uncertainty.adoption.parts import Function, HostWeight, Part
from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.mixin import OnNonfinite
from lightning_uncertainty.tasks.task import Tasks, check_known, specify
from lightning_uncertainty.weightings import AnalyticUncertaintyWeighting, Weighting

__all__ = ["adopt", "is_adopted", "unadopt"]


def adopt(
    module: Any,
    tasks: Tasks,
    parts: Parts,
    *,
    weighting: Weighting | None = None,
    rest: str | None = None,
    count: Count = None,
    divisor: Count = None,
    keep_host_weights: bool = False,
    may_be_absent: str | Collection[str] = (),
    follow: bool = False,
    shared: str | Iterable[str] | None = None,
    beside: str | None = None,
    global_losses: bool = False,
    validation: Mapping[str, str | Part] | None = None,
    renamed: Mapping[str, str] | None = None,
    on_nonfinite: OnNonfinite = "raise",
) -> Any:
    r"""Make a LightningModule uncertainty-weighted, in place, without a change of its code.

    Its `training_step` runs as ever, and what it would minimise, `total = Σ w_i L_i`, is taken apart into the tasks'
    losses: where a part is a tensor of the graph (it is logged, or what a call returns), it is that tensor, and
    `d total / d L_i` tells the host's own weight `w_i`; where a weight is named, `L_i = d total / d w_i`. The step then
    returns `weigh` of these losses, so that the network's gradients are those of a step written by hand. In manual
    optimization it is what `manual_backward` is given that is taken apart; the loss of another optimizer passes.

    What the parts do not explain must be zero, the total linear in them and no host weight zero or negative, or the
    step is refused; that is looked at in the first steps of a fit and where a row is logged.

    The module's class becomes a subclass of its own with all of `MultiTaskMixin`, of the same name. Checkpoints keep
    the host's shape: what is ours lies apart, under "lightning_uncertainty", and the host's own loader reads the rest.

    Args:
        module: a LightningModule of either namespace, with a `training_step`.
        tasks: as for `register_tasks`; the network's heads are the host's, so that a task has neither head nor metrics.
        parts: by task, how its loss is named, as `"log:train/depth_loss"`; see `Logged`, `HostWeight`, `Call` and
            `Function`. `"weight:criterion.task_weights"` alone, or a `HostWeight`, is a tensor or list with a weight
            for every task, in their order. `describe` lists those that a host has.
        weighting: as for `register_tasks`; where None `AnalyticUncertaintyWeighting()`, which has nothing that a host's
            optimizer could lose. One with log-variances gets a parameter group of its own in the host's optimizer.
        rest: what the part of the total is that no task explains: "plain" adds it as it is, the name of a task is that
            task's loss, and None refuses it.
        count: a function of the batch, or its dotted name, that returns how many labels each task has in it. Needed
            where labels are missing, over several processes.
        divisor: a function of the batch, or its dotted name, that returns by what the host divided a task's sum of
            losses, by task or for all; `count` where None.
        keep_host_weights: whether losses are weighed with the host's weights in them; σ is then not in label units.
            Those of a task with the likelihood `constant`, as of a KL term that is annealed, stay always.
        may_be_absent: tasks that may be missing in the first step, or whose loss is exactly 0 where they have no
            labels. Others may be missing once they were there.
        follow: whether to find the losses behind numbers that the host logs by `detach()` or `item()`; costs time.
        shared: paths of the modules that the tasks share, for `GradientBalancing(on="parameters")` and GradNorm alike.
        beside: where the host has several optimizers and the weighting learns log-variances, the path of a module whose
            optimizer steps the loss that the tasks are parts of; as `own_group`.
        global_losses: whether the host has each process make the loss of the global batch, multiplied by the number of
            processes, so that the mean of gradients over them is its own; as NequIP does.
        validation: by task, how its loss is named in `validation_step`; then `val/<task>/loss` and `val/balanced_loss`
            are logged beside the host's own keys. No weights: there is no gradient then. Where the host's
            weights stay in a loss, they are those of the latest step of training.
        renamed: as for `register_tasks`.
        on_nonfinite: as for `register_tasks`.

    Returns:
        The module itself.

    Raises:
        TypeError: the module is no LightningModule with a `training_step` of its own, or is compiled whole, uses a name
            that the mixin needs, or is a `MultiTaskMixin`.
        ValueError: a task has no part, or one that cannot be read or is another's; a weighting looks at gradients of
            features, or of parameters that `shared` does not name; or as `register_tasks`.
        RuntimeError: it is adopted already; or, in a step, a part is not in the loss, the loss not linear in them, or
            more than they explain.

    Example:
        >>> from pytorch_lightning import LightningModule
        >>> from torch import nn
        >>> class Theirs(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Linear(4, 2)
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         x, depth, height = batch
        ...         made = self.net(x)
        ...         near, tall = (made[:, 0] - depth).abs().mean(), (made[:, 1] - height).square().mean()
        ...         self.log_dict({"depth_loss": near, "height_loss": tall})
        ...         return near + 0.01 * tall
        >>> net = adopt(
        ...     Theirs(),
        ...     {"depth": "laplace", "height": "gaussian"},
        ...     {"depth": "log:depth_loss", "height": "log:height_loss"},
        ... )
        >>> type(net).__name__, sorted(net.sigma())
        ('Theirs', ['depth', 'height'])
    """
    check_host(module)
    specified = specify(tasks)
    owners = [name for name, task in specified.items() if task.head is not None or task.metrics is not None]
    if owners:
        raise ValueError(
            f"a task of an adopted module should have neither head nor metrics, which are its host's: found some for "
            f"{', '.join(owners)}; leave them out"
        )
    names = list(specified)
    if rest is not None and rest != PLAIN and rest not in specified:
        raise ValueError(f"rest should be 'plain' or a task ({', '.join(names)}): found {rest!r}")
    if divisor is not None and count is None:
        raise ValueError(
            "divisor= undoes what the host divided the labels of count= by: found no count=; say count= (labels by "
            "task in a batch), too"
        )
    absent = (may_be_absent,) if isinstance(may_be_absent, str) else tuple(may_be_absent)
    check_known(absent, names)
    weighting = AnalyticUncertaintyWeighting() if weighting is None else weighting
    options = Options(
        tasks=tuple(names),
        likelihoods=repr([task.likelihood for task in specified.values()]),
        parts=tuple(as_parts(parts, names, rest if rest in specified else None, module).items()),
        weighting=repr(weighting),
        rest=rest,
        count=_checked_function(count, "count"),
        divisor=_checked_function(divisor, "divisor"),
        keep_host_weights=keep_host_weights,
        constants=tuple(name for name, task in specified.items() if as_likelihood(task.likelihood).constant),
        may_be_absent=absent,
        follow=follow,
        shared=(shared,) if isinstance(shared, str) else tuple(shared or ()),
        beside=beside,
        global_losses=global_losses,
        validation=tuple(_validated(validation, names, type(module)).items()),
        renamed=tuple((renamed or {}).items()),
        on_nonfinite=on_nonfinite,
    )
    if isinstance(module, Adopted):
        if module._adoption.options == options:
            return module
        raise RuntimeError(
            "a module should have one adoption: found one that asks for something else; call unadopt(module) first"
        )
    host: Any = type(module)
    module.__class__ = adopted_class(host)
    try:
        shape_states(module)
        module._adoption = Adoption(options)
        module.register_tasks(specified, weighting=weighting, renamed=renamed, on_nonfinite=on_nonfinite)
        module._adoption.names = OwnNames(module, NAMES)
        check_optimizer(module)
        check_shared(module)
        check_paths(module)
    except BaseException:
        unadopt(module)
        raise
    module.task_weighting.to(device=module.device)
    module._take_dtype()
    return module


def unadopt(module: Any) -> Any:
    """Give a module back as it was before `adopt`, with what it has learnt since; it keeps no σ.

    Returns:
        The module itself.

    Raises:
        TypeError: it is not adopted.

    Example:
        >>> from pytorch_lightning import LightningModule
        >>> class Theirs(LightningModule):
        ...     def training_step(self, batch, batch_idx):
        ...         return batch.mean()
        >>> net = adopt(Theirs(), {"depth": "laplace"}, {"depth": "call:training_step"})
        >>> type(unadopt(net)) is Theirs
        True
    """
    if not is_adopted(module):
        raise TypeError(
            f"unadopt takes a module that is adopted: found a {type(module).__name__}"
            + (
                "; its class was changed since, as fully_shard does: unadopt before"
                if isinstance(module, Adopted)
                else ""
            )
        )
    host, names = module._host_class, getattr(getattr(module, "_adoption", None), "names", None)
    kept = [] if names is None else names.taken(module)  # by the host, since
    for name in [name for name in (*module._modules, *vars(module)) if name in NAMES and name not in kept]:
        delattr(module, name)
    unshape_states(module)
    module.__class__ = host
    return module


def is_adopted(module: Any) -> bool:
    """Whether a module is adopted, and its class still that which `adopt` gave it."""
    return isinstance(module, Adopted) and type(module) is adopted_class(module._host_class)


def _checked_function(given: Count, what: str) -> Count:
    if isinstance(given, str):
        Function(given)  # which is told where it cannot be imported
    elif given is not None and not callable(given):
        raise ValueError(
            f"{what} should be a function of the batch, or its dotted name: found a {type(given).__name__}"
        )
    return given


def _validated(given: Mapping[str, str | Part] | None, names: list[str], host: Any) -> dict[str, Part]:
    if given and host.validation_step is base_of(host).validation_step:
        raise ValueError(
            f"validation= needs a host that has a validation_step: found none in {host.__name__}; leave it out"
        )
    parts = {name: as_part(part) for name, part in by_name(given, "validation").items()} if given else {}
    check_known(parts, names)
    weights = [str(part) for part in parts.values() if isinstance(part, HostWeight)]
    if weights:
        raise ValueError(
            f"a part in validation should be what is logged or returned, as there is no gradient: found "
            f"{', '.join(weights)}; name a key that validation_step logs"
        )
    return parts
