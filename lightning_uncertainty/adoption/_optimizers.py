"""Whether log-variances have come into an optimizer of the host's, and into the right one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import LBFGS, Optimizer

__all__ = ["check_made", "one_group_more"]


@contextmanager
def one_group_more(weighting: nn.Module) -> Iterator[None]:
    """Say what may be wrong where a host's optimizers or schedulers count groups.

    Raises:
        RuntimeError: building them fails, and there are log-variances.
    """
    try:
        yield
    except (ValueError, IndexError) as error:
        if not any(True for _ in weighting.parameters()):
            raise
        raise RuntimeError(
            "a host's configure_optimizers should bear one parameter group more, that of the log-variances: found that "
            f"it raises: {error}; if it has a list with a number for every group, take AnalyticUncertaintyWeighting(), "
            "which has nothing to be optimized"
        ) from error


def check_made(made: Any, weighting: Any, beside: str | None) -> None:
    """Look at what a host's configure_optimizers returned.

    Raises:
        RuntimeError: an optimizer evaluates a batch several times; or there are log-variances, and no optimizer was
            built there, or several were and nobody said which.
    """
    own = list(weighting.parameters())
    ids = {id(parameter) for parameter in own}
    optimizers = list({id(optimizer): optimizer for optimizer in _optimizers_in(made)}.values())
    if weighting.remembers and any(isinstance(optimizer, LBFGS) for optimizer in optimizers):
        raise RuntimeError(
            "a weighting that learns or remembers should have optimizers that evaluate a batch once a step: found the "
            "host's LBFGS, which does so many times, each a step of the weighting; adopt with weighting=FixedWeighting"
            "(...), or have the host take another optimizer where it can be chosen"
        )
    if own and not optimizers:
        raise RuntimeError(
            "log-variances should be in an optimizer: found none that the host's configure_optimizers returns; take "
            "AnalyticUncertaintyWeighting(), which has nothing to be optimized"
        )
    if not own:
        return
    holds = [any(id(p) in ids for group in each.param_groups for p in group["params"]) for each in optimizers]
    if beside is None and not any(holds):
        raise RuntimeError(
            "a host's optimizer should be built in its configure_optimizers, or log-variances are in none: found one "
            "that was built before, as the host was given it; leave the optimizer to the host, or take "
            "AnalyticUncertaintyWeighting(), which has nothing to be optimized"
        )
    if beside is None and len(optimizers) > 1:
        kinds = ", ".join(type(optimizer).__name__ for optimizer in optimizers)
        raise RuntimeError(
            f"log-variances should be stepped with the loss that the tasks are parts of: found {len(optimizers)} "
            f"optimizers ({kinds}), and nobody said which that is; name a module that it holds, as in "
            "beside='generator', or take AnalyticUncertaintyWeighting(), which has nothing to be optimized"
        )


def _optimizers_in(made: Any) -> Iterator[Optimizer]:
    """Yield the optimizers in any of the forms that Lightning takes."""
    if isinstance(made, Optimizer):
        yield made
    elif isinstance(made, Mapping):
        yield from _optimizers_in(made.get("optimizer"))
    elif isinstance(made, list | tuple):
        for part in made:
            yield from _optimizers_in(part)
