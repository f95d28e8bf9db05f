"""Steps that are skipped: a total that moves nothing, and silence for what is added to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from lightning_uncertainty._tensors import world_size

__all__ = ["Skip"]


class Skip:
    """A batch that is skipped: the backward of its total moves nothing, whatever was added to it.

    Gradients that arrive in that backward are replaced by zeros, so those of other batches that a step accumulates
    stay. Those that are zero afterwards are dropped, as momentum moves what has a gradient of zero.

    Several processes wait for a gradient of every parameter, and a GradScaler looks at one: there the total brings
    zeros to all. The scaler has to see them, so they are dropped after it, before the optimizer steps.

    Args:
        module: whose parameters are to stay.
        trainer: the Trainer, if there is one.
    """

    def __init__(self, module: nn.Module, trainer: Any | None) -> None:
        root = module if trainer is None else trainer.lightning_module
        self._parameters = [parameter for parameter in root.parameters() if parameter.requires_grad]
        self._scaled = [] if trainer is None or trainer.scaler is None else list(trainer.optimizers)
        self._hooks = [parameter.register_hook(torch.zeros_like) for parameter in self._parameters]

    def total(self, device: torch.device) -> Tensor:
        """Return the total, a zero; it is asked for once."""
        awaited = self._parameters if self._scaled or world_size() > 1 else []
        plain = (parameter for parameter in awaited if type(parameter) is nn.Parameter)  # FSDP2 awaits none of a shard
        total: Tensor = _Zero.apply(self, torch.zeros((), device=device, requires_grad=True), *plain)  # type: ignore[no-untyped-call]
        return total

    def end(self) -> None:
        """Let gradients arrive again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _after_backward(self) -> None:
        self.end()
        if not self._scaled:
            drop_zeros(self._parameters)
        for optimizer in self._scaled:
            _BeforeStep.of(optimizer).due = True


class _BeforeStep:
    """Drops an optimizer's zero gradients before its next step, if it is due.

    Its hook stays, as one that is removed while hooks run would stop them with an error.
    """

    _known: ClassVar[WeakKeyDictionary[torch.optim.Optimizer, _BeforeStep]] = WeakKeyDictionary()

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.due = False
        optimizer.register_step_pre_hook(self._drop)

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> _BeforeStep:
        """Return an optimizer's one."""
        if optimizer not in cls._known:
            cls._known[optimizer] = cls(optimizer)
        return cls._known[optimizer]

    def _drop(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self.due:
            self.due = False
            drop_zeros(parameter for group in optimizer.param_groups for parameter in group["params"])


def drop_zeros(parameters: Iterable[nn.Parameter]) -> None:
    """Drop gradients that are zero."""
    for parameter in parameters:
        if parameter.grad is not None and not parameter.grad.any():
            parameter.grad = None


class _Zero(torch.autograd.Function):
    """A zero that brings zeros to parameters, and tells when its backward is through, on all processes."""

    @staticmethod
    def forward(ctx: Any, skip: Skip, zero: Tensor, *parameters: Tensor) -> Tensor:
        ctx.skip, ctx.parameters = skip, parameters
        return zero.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        queue = Variable._execution_engine.queue_callback  # type: ignore[attr-defined]
        queue(lambda: queue(ctx.skip._after_backward))  # DDP's own callback, which hands gradients out, comes before
        return None, gradients[0], *map(torch.zeros_like, ctx.parameters)
