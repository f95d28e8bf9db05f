"""What a weighting of a user's own owes, looked at when tasks are registered."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_uncertainty.weightings._task_vectors import NOT_VECTORS
from lightning_uncertainty.weightings._weighted import Weighted

if TYPE_CHECKING:
    from lightning_uncertainty.weightings._base import Weighting

__all__ = ["as_weighted", "filling"]

_BLANK = -7.25e8  # no first value of anything


@contextmanager
def filling(weighting: Weighting) -> Iterator[None]:
    """Look, around `reset_parameters`, whether a weighting that is not of this package keeps the contract.

    Raises:
        ValueError: a vector is none, or is not filled; or `weigh` returns something else than it should.
        TypeError: it returns no `Weighted`.
    """
    kind = type(weighting)
    ours = kind.__module__.partition(".")[0] == __name__.partition(".")[0]
    if ours or any(tensor.is_meta for tensor in weighting.state_dict().values()):
        yield
        return
    vectors = _vectors(weighting)
    for what, tensor in vectors.items():
        if tensor.shape[-1:] != (len(weighting.tasks),):
            raise ValueError(
                f"what {kind.__name__} keeps should be vectors over tasks, [T] or [..., T], which checkpoints know by "
                f"task: found {what} of shape {list(tensor.shape)} for {len(weighting.tasks)} tasks; make it of "
                "`self.vector()`, or, where it need not be saved, a buffer with persistent=False"
            )
    numbers = {what: tensor for what, tensor in vectors.items() if tensor.is_floating_point()}
    with torch.no_grad():
        for tensor in numbers.values():
            tensor.fill_(_BLANK)
    yield
    left = [what for what, tensor in numbers.items() if (tensor == _BLANK).any()]
    if left:
        raise ValueError(
            f"reset_parameters of {kind.__name__} should fill all that make_vectors makes: found {', '.join(left)} as "
            "they were; call super().reset_parameters(), and fill them in place, as in `self.steps.zero_()`"
        )
    _try(weighting)


def _vectors(weighting: Weighting) -> dict[str, Tensor]:
    """Return what `make_vectors` made itself and checkpoints hold."""
    made = [*weighting.named_parameters(recurse=False), *weighting.named_buffers(recurse=False)]
    return {name: tensor for name, tensor in made if name in weighting.state_dict() and name not in NOT_VECTORS}


def _try(weighting: Weighting) -> None:
    """Weigh a batch, in evaluation, by a copy."""
    kind, count = type(weighting).__name__, len(weighting.tasks)
    rule = f"{kind}.weigh should return Weighted(total, weights, log_variances)"
    losses = (torch.arange(count) + 1.0).requires_grad_()
    with torch.enable_grad():
        weighted = copy.deepcopy(weighting).eval()(losses, torch.ones(count, dtype=torch.bool))
    total, weights, log_variances = weighted
    if total.shape != ():
        raise ValueError(f"{rule}, with a 0-dimensional total: found shape {list(total.shape)}; sum over the tasks")
    for what, vector in (("weights", weights), ("log_variances", log_variances)):
        if vector is not None and vector.shape != (count,):
            raise ValueError(f"{rule}, with {what} [T]: found shape {list(vector.shape)} for {count} tasks")
    if log_variances is not None and weighting.log_variance is None:
        raise ValueError(
            f"{rule}, with log-variances only where it has a buffer for them, which sigma() reads: found none; "
            'make one in make_vectors, `self.register_buffer("log_variance", self.vector())`'
        )
    if not weighting.closed_form:
        return
    found = torch.autograd.grad(total, losses, allow_unused=True)[0] if total.requires_grad else None
    slopes = torch.zeros(count) if found is None else found
    if not torch.allclose(slopes, weights.to(slopes), rtol=1e-3, atol=1e-6):
        raise ValueError(
            f"{rule}, with weights that are d total / d loss: found {weights.tolist()}, where the total's derivatives "
            f"are {slopes.tolist()}, at losses {losses.tolist()}; return those, or set closed_form = False where "
            "gradients decide"
        )


def as_weighted(weighted: object, kind: str) -> Weighted:
    """Return what `weigh` returned, without graphs of weights and log-variances.

    Raises:
        TypeError: it is no `Weighted`, or not of tensors.
    """
    if not isinstance(weighted, Weighted):
        raise TypeError(
            f"{kind}.weigh should return Weighted(total, weights, log_variances): found a {type(weighted).__name__}; "
            "log_variances are None where there are none"
        )
    total, weights, log_variances = weighted
    for what, part in (("total", total), ("weights", weights), ("log_variances", log_variances)):
        if not (isinstance(part, Tensor) or (part is None and what == "log_variances")):
            raise TypeError(f"{what} of {kind}.weigh should be a tensor: found a {type(part).__name__}; make one of it")
    if weights.requires_grad or (log_variances is not None and log_variances.requires_grad):
        return Weighted(total, weights.detach(), None if log_variances is None else log_variances.detach())
    return weighted
