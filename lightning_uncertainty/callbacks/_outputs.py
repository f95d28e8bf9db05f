"""What a module makes of a batch, by task, without a trace of having been asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from inspect import Parameter, signature
from typing import Any, NamedTuple

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_uncertainty.callbacks._fixed_rows import copied
from lightning_uncertainty.likelihoods import Prediction
from lightning_uncertainty.mixin import MultiTaskMixin
from lightning_uncertainty.predictions.predict import Pools, draw, evaluate
from lightning_uncertainty.predictions.sampling import Sampling

__all__ = ["Forward", "Made", "made_of", "undisturbed"]

Forward = Callable[[Any, Any], Mapping[str, Tensor]]
_set_stance = getattr(torch.compiler, "set_stance", None)  # torch 2.6


class Made(NamedTuple):
    """What was made of a batch.

    Attributes:
        outputs: of a pass in evaluation mode, by task.
        predictions: of all samples, by task.
        batch: that holds the labels, as the module made it of what it was given.
    """

    outputs: dict[str, Tensor]
    predictions: dict[str, Prediction]
    batch: Any


class _Left(BaseException):
    """Leaves a step of validation where its outputs are known; no `except Exception` of the user's holds it up."""

    def __init__(self, outputs: Mapping[str, Tensor] | None, batch: Any) -> None:
        super().__init__()
        self.outputs, self.batch = outputs, batch


@contextmanager
def undisturbed(trainer: Any, module: Any) -> Iterator[None]:
    """Look at a module within: random states, metrics, logs and modes are afterwards as they were.

    Precision is that of a step of validation; a compiled module runs as it was written, as for a batch of its own size
    it would be compiled anew.
    """
    modes = [(part, part.training) for part in module.modules()]
    with ExitStack() as stack:
        stack.enter_context(isolate_rng())
        torch.manual_seed(0)  # noise that a likelihood draws is the same each time
        if _set_stance is not None:
            stack.enter_context(_set_stance("force_eager"))
        stack.enter_context(_instead(module, log=_nothing, log_dict=_nothing))
        for part in module.modules():
            if isinstance(part, Metric):
                stack.enter_context(_instead(part, update=_nothing, compute=_unknown, forward=_unknown))
        stack.enter_context(trainer.precision_plugin.val_step_context())
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode


def made_of(
    module: Any,
    net: MultiTaskMixin,
    batch: Any,
    *,
    place: tuple[int, ...] = (0,),
    forward: Forward | None = None,
    picture: Any = None,
    samples: int = 1,
    tasks: Collection[str] = (),
) -> Made:
    """Return what a module makes of a batch in evaluation mode, without gradients.

    Args:
        module: that the Trainer runs.
        net: the part of it that has tasks; the module itself or not.
        batch: as a step of validation is given it.
        place: the number of the batch, and that of its loader where there are several.
        forward: from module and batch to outputs by task. Where None, outputs are those that `task_step` or
            `task_losses` has in a step of validation, else what the module's `forward` returns of the picture.
        picture: what is shown of the batch; None where there is none.
        samples: passes; more than one with dropout.
        tasks: that are predicted.

    Raises:
        ValueError: nothing tells the outputs, or there is no dropout for several passes.
    """
    labelled = [batch]

    def run(given: Any) -> Mapping[str, Tensor]:
        given = copied(given)  # a step may change it in place
        if forward is not None:
            return _named(forward(module, given), net, "forward=")
        outputs, labelled[0] = _of_step(module, net, given, place)
        return _of_forward(module, net, picture) if outputs is None else outputs

    single = evaluate(module, run, batch)
    seen = labelled[0]
    pools, scales = Pools(net.task_likelihoods()), net.task_scales()

    def take(outputs: Mapping[str, Tensor]) -> None:
        pools.add({name: outputs[name] for name in tasks if name in outputs}, scales)

    if samples == 1:
        take({name: output.unsqueeze(0) for name, output in single.items()})
    else:
        draw(take, module, batch, samples, run, Sampling(seed=0))
    return Made(single, pools.predictions(), seen)


def _of_step(
    module: Any, net: MultiTaskMixin, batch: Any, place: tuple[int, ...]
) -> tuple[Mapping[str, Tensor] | None, Any]:
    """Return the outputs that `task_step` or `task_losses` has in a step of validation, and its batch.

    None where neither is called before `weigh`.
    """

    def task_step(features: Any, batch: Any, *rest: Any, **options: Any) -> None:
        raise _Left(net.task_outputs(features), batch)

    def task_losses(outputs: Mapping[str, Tensor], batch: Any) -> None:
        raise _Left(outputs, batch)

    def weigh(*rest: Any, **options: Any) -> None:
        raise _Left(None, batch)

    if hasattr(net, "_adoption"):  # a host's step knows no task_step, and what it logs is watched
        return None, batch
    step = _as_written(module, "validation_step")
    stage, net._task_fit.stage = net._task_fit.stage, "val"
    try:
        with _instead(net, task_step=task_step, task_losses=task_losses, weigh=weigh):
            step(*(batch, *place)[: _positions(step)])
    except _Left as left:
        return left.outputs, left.batch
    finally:
        net._task_fit.stage = stage
    return None, batch


def _of_forward(module: Any, net: MultiTaskMixin, picture: Any) -> Mapping[str, Tensor]:
    """Return what `forward` makes of a picture."""
    owner = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    known = owner is not nn.Module and owner.__name__ != "LightningModule" and picture is not None
    return _named(_as_written(module, "forward")(picture) if known else None, net, "forward")


def _named(found: Any, net: MultiTaskMixin, source: str) -> Mapping[str, Tensor]:
    """Return outputs by task.

    Raises:
        ValueError: they are none.
    """
    tasks = net.task_likelihoods()
    if isinstance(found, Mapping):
        named = {name: found[name] for name in tasks if isinstance(found.get(name), Tensor)}
        if named:
            return named
    kind = f"a {type(found).__name__}" if not isinstance(found, Mapping) else f"the keys {', '.join(map(str, found))}"
    other = "" if source != "forward" else "validation_step hands none to task_step or task_losses, and "
    what = "there is none to call with a picture" if found is None and source == "forward" else f"it returns {kind}"
    raise ValueError(
        f"PredictionImages needs outputs by task ({', '.join(tasks)}): found that {other}of {source} {what}; give "
        "forward=lambda module, batch: {...} with what the head of each task returns"
    )


_NONE = object()


@contextmanager
def _instead(module: nn.Module, **members: Any) -> Iterator[None]:
    """Have other members in place of a module's within."""
    own = vars(module)
    before = {name: own.get(name, _NONE) for name in members}
    own.update(members)
    try:
        yield
    finally:
        for name, member in before.items():
            if member is _NONE:
                del own[name]
            else:
                own[name] = member


def _as_written(module: Any, name: str) -> Any:
    """Return a member of a module as it was before the module was compiled whole."""
    context = getattr(module, "_compiler_ctx", None)
    return getattr(module, name) if context is None else context[f"original_{name}"]


def _positions(step: Any) -> int | None:
    """Return how many arguments a step takes by position; None for any number."""
    parameters = signature(step).parameters.values()
    if any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    return sum(
        parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters
    )


def _nothing(*rest: Any, **options: Any) -> None:
    return None


def _unknown(*rest: Any, **options: Any) -> Tensor:
    return torch.tensor(torch.nan)
