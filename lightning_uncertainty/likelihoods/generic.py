"""Any positive loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_uncertainty.likelihoods._elementwise import Elementwise

__all__ = ["Generic"]


@dataclass(frozen=True)
class Generic(Elementwise, name="generic"):
    """Any other positive loss.

    `J = ½ e^{-s} L + ½ s`; `e^s` at the optimum is `L` itself, a scale and no variance.

    Args:
        elementwise: `elementwise(output, target)` returns one positive error per scalar, for example
            `partial(F.smooth_l1_loss, reduction="none")`. Needed only where the task owns its loss (`task_step`);
            `weigh` takes any positive loss.

    Example:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> huber = Generic(lambda output, target: F.huber_loss(output, target, reduction="none"))
        >>> huber.loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0]))
        (tensor(0.5000), tensor(2.))
    """

    elementwise: Callable[[Tensor, Tensor], Tensor] | None = None
    factor: ClassVar[float] = 0.5
    meaning: ClassVar[str] = "√loss [-]"

    def __post_init__(self) -> None:
        if self.elementwise is not None and (not callable(self.elementwise) or isinstance(self.elementwise, type)):
            raise ValueError(
                "elementwise should be a function of output and target, as partial(F.mse_loss, reduction='none'): "
                f"found {self.elementwise!r}"
            )

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        if self.elementwise is None:
            raise ValueError(
                "a generic task that owns its loss needs the elementwise error: give `Generic(elementwise=...)`, or "
                "compute the loss yourself and hand it to `weigh`"
            )
        error = self.elementwise(output, target)
        if error.shape != target.shape:
            raise ValueError(
                f"elementwise should return one error per label {list(target.shape)}: found {list(error.shape)}; use "
                'reduction="none"'
            )
        return error
