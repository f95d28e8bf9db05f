"""The loss with which JTRL learns depth."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["berhu"]


def berhu(output: Tensor, target: Tensor, *, observed: Tensor | None = None) -> Tensor:
    """Return the reverse Huber loss of every scalar: absolute for small errors, quadratic for large ones.

    With `e = output - target` and `c = 0.2 max|e|` over the batch, a constant to the gradient::

        |e|                  where |e| <= c
        (e² + c²) / (2 c)    elsewhere

    Value and slope are continuous at `c`. Where all errors are zero, so are the loss and its gradient. Each process of
    a distributed run has the `c` of its own part of the batch.

    `Generic(berhu)` makes it a task's loss. Missing labels have been filled with 0 by then, so their errors would
    still enter `c`: with large predictions there, it comes out too large. `observed` keeps them out. Labels that are
    positive wherever they are known, as depths are, say it themselves::

        Generic(lambda output, target: berhu(output, target, observed=target > 0))

    Source: Owen, "A robust hybrid of lasso and ridge regression", Contemporary Mathematics 2007; the choice of `c` is
    that of Laina et al., "Deeper Depth Prediction with Fully Convolutional Residual Networks", 3DV 2016.

    Args:
        output: predictions of any shape.
        target: labels of the same shape, finite ones: `torch.nan_to_num(label)`.
        observed: True where a label is known, shape of both; None for all. The others' loss is zero.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> berhu(torch.tensor([0.05, -0.1, 0.4, -1.0, 0.15]), torch.zeros(5))  # c = 0.2
        tensor([0.0500, 0.1000, 0.5000, 2.6000, 0.1500])
    """
    shapes = [list(x.shape) for x in (output, target, observed) if x is not None]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            "output, target and observed of berhu should have one shape: found "
            f"{', '.join(map(str, shapes))}; a broadcast would compare what does not belong together"
        )
    error = (output - target).abs()
    if observed is not None:
        error = torch.where(observed, error, 0.0)
    if error.numel() == 0:
        return error
    c = 0.2 * error.detach().amax()
    divisor = torch.where(c > 0, c, 1.0)  # the branch not taken must not be 0/0 either, or the gradient is NaN
    return torch.where(error <= c, error, 0.5 * (error * (error / divisor) + c))
