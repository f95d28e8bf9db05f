"""Which labels are observed: masks, the sum and count under one, and labels brought to the shape of an output."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_uncertainty._tensors import promote, reads_values

__all__ = [
    "Counted",
    "align",
    "align_whole",
    "check_tensors",
    "fit_mask",
    "masked_sum",
    "mend_of_classes",
    "range_of",
    "sum_and_count",
]


def masked_sum(error: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum an elementwise error over its observed scalars and count them.

    `weigh` takes the pair as it is: `self.weigh({"depth": masked_sum(error, mask)})`. Sums and counts add up over
    ranks, means do not. Make missing labels finite *before* the error is computed (`torch.nan_to_num(label)`): a mask
    cannot repair the gradient of NaN.

    Args:
        error: errors of any shape, `[B, ...]`; half types are summed in float32.
        mask: True where a label is observed; None for all. Shape of `error`, or the same without the channel dimension
            (`[B, H, W]` for `[B, C, H, W]`), or `[B]`. Every channel under a mask counts as a scalar.

    Returns:
        `(sum, count)`, two 0-dimensional tensors.

    Raises:
        ValueError: the mask is not boolean, does not fit, or leaves a NaN or an infinity behind it (eager CPU).

    Example:
        >>> depth, label = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.5, float("nan"), 3.0])
        >>> masked_sum((depth - label.nan_to_num()).abs(), ~label.isnan())
        (tensor(0.5000), tensor(2.))
    """
    if not isinstance(error, Tensor) or error.is_complex() or not (mask is None or isinstance(mask, Tensor)):
        found = ", ".join(str(getattr(given, "dtype", type(given).__name__)) for given in (error, mask))
        raise ValueError(f"error and mask should be tensors, real and boolean: found {found}")
    if mask is not None:
        mask = fit_mask(mask, error.shape)
        if reads_values(error):
            finite = torch.isfinite(error.detach())
            if (finite | ~mask).all() and not finite.all():
                raise ValueError(
                    "errors behind a mask must be finite, found NaN or inf: make missing labels finite before the "
                    "error is computed, as in `torch.nan_to_num(label)`, or their gradient is NaN"
                )
    return sum_and_count(error, mask)


class Counted(tuple[Tensor, Tensor]):
    """A pair `(sum, count)` whose count is no number of labels, as where classes have weights.

    Attributes:
        labels: the number of observed labels, 0-dimensional.

    Example:
        >>> total, count = pair = Counted((torch.tensor(6.0), torch.tensor(0.5)), torch.tensor(3))
        >>> total.item(), count.item(), pair.labels.item()
        (6.0, 0.5, 3)
    """

    labels: Tensor | None

    def __new__(cls, pair: tuple[Tensor, Tensor], labels: Tensor | None = None) -> Counted:
        self = super().__new__(cls, pair)
        self.labels = labels
        return self


def sum_and_count(error: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the sum of errors, float32 or wider, and their count, where the mask is True; None is everywhere."""
    error = promote(error)
    if mask is None:
        return error.sum(), error.new_full((), error.numel())
    return torch.where(mask, error, 0.0).sum(), mask.sum(dtype=error.dtype)


def fit_mask(mask: Tensor, shape: torch.Size) -> Tensor:
    """Expand a mask to `shape` (see `masked_sum`)."""
    if mask.dtype is not torch.bool:
        raise ValueError(f"a mask should be boolean, found {mask.dtype}: compare it, as in `mask > 0`")
    if len(shape) > 1 and mask.shape == shape[:1] + shape[2:]:
        mask = mask.unsqueeze(1)
    elif mask.shape == shape[:1]:
        mask = mask.reshape(-1, *[1] * (len(shape) - 1))
    fits = mask.dim() == len(shape) and all(m in (1, n) for m, n in zip(mask.shape, shape, strict=True))
    if not fits:
        raise ValueError(
            f"a mask should have the shape of the errors, with or without their channel dimension, or [B]: "
            f"found {list(mask.shape)} for errors {list(shape)}"
        )
    return mask.expand(shape)


def align(name: str, output: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Bring output and labels of one number each to one shape and to float32 or wider.

    Args:
        name: what errors call the likelihood.
        output: `[B, ...]`, with or without a single channel that labels leave out.
        target: `[B, ...]`, NaN where a label is missing.
        mask: True where a label is observed; see `masked_sum`.

    Returns:
        Both, and where a label is observed.

    Raises:
        ValueError: shapes differ, or labels are complex.
    """
    check_tensors(name, output, target, mask)
    if output.dim() == target.dim() + 1 and output.shape[1] == 1:
        output = output.squeeze(1)  # [B, 1, H, W] beside labels [B, H, W], [B, 1] beside [B]
    if output.shape != target.shape:
        raise ValueError(
            f"labels of a {name} task should have the output's shape {list(output.shape)} "
            f"(a single channel may be left out): found {list(target.shape)}"
        )
    if target.is_complex():
        raise ValueError(f"labels of a {name} task should be real numbers: found {target.dtype}")
    output, target = promote(output), promote(target)
    observed = ~target.isnan()
    return output, target, observed if mask is None else observed & fit_mask(mask, target.shape)


def align_whole(name: str, mean: Tensor, target: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return predictions, labels and where these are observed, as `align` does, in the shape of the predictions."""
    mean = promote(mean)
    if target is None:
        return mean, torch.full_like(mean, torch.nan), torch.zeros_like(mean, dtype=torch.bool)
    _, label, there = align(name, mean, target, mask)
    return mean, label.reshape(mean.shape), there.reshape(mean.shape)


def check_tensors(name: str, output: Tensor, target: Tensor, mask: Tensor | None) -> None:
    """Raise where output, labels or mask of a likelihood are no tensors, or the output is complex.

    Raises:
        ValueError: so it is.
    """
    for what, given in (("the output", output), ("labels", target), ("the mask", mask)):
        if given is not None and not isinstance(given, Tensor):
            raise ValueError(f"{what} of a {name} task should be a tensor: found a {type(given).__name__}")
    if output.is_complex():
        raise ValueError(f"the output of a {name} task should be real numbers: found {output.dtype}")


def range_of(labels: Tensor) -> str:
    """Return the least and the largest of labels, in words."""
    return f"{labels.min().item():g} to {labels.max().item():g}"


def mend_of_classes(logits: Tensor, target: Tensor) -> str:
    """Return what brings logits and labels of classes that do not fit to shapes that do."""
    shape = logits.shape
    if logits.dim() > 2 and shape[:-1] == target.shape:
        return "classes should stand second: hand on output.movedim(-1, 1)"
    if target.dim() > 1 and target.shape == (*shape[:1], 1, *shape[2:]):
        return "labels should have no channel: hand on label.squeeze(1)"
    if logits.dim() > 2 and target.shape == shape[:1]:
        return "for a class of the whole input have the head return [B, C], as by output.flatten(2).mean(2)"
    return "batch and places should be those of the logits: look at the head and at the labels"
