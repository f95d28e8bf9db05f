"""What of a batch a metric is given: its observed scalars, rows of outputs, or whole images."""

from __future__ import annotations

import inspect
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torchmetrics import Metric, MultioutputWrapper

__all__ = ["FORMS", "Form", "Selected", "gaps_of", "select"]

Form = Literal["scalars", "rows", "images"]
"""What a metric is made for."""

FORMS: tuple[Form, ...] = get_args(Form)
Gaps = float | Literal["mask", "kept"] | None


class Selected(NamedTuple):
    """What a metric is given, and how many rows or images it is not given as labels are missing in them.

    Attributes:
        given: predictions and labels, and a mask where the metric takes one.
        left_out: how many, 0-dimensional.
    """

    given: tuple[Tensor, ...]
    left_out: Tensor


def gaps_of(metric: Metric) -> Gaps:
    """Return how a metric wants labels that are missing in a row or an image to be marked.

    By a number: its `ignore_index`, or NaN for a MultioutputWrapper that removes them; "mask" where its `update` takes
    one; "kept", as the labels mark them, where it knows a void class; None where it takes complete ones only.
    """
    if "mask" in inspect.signature(metric.update).parameters:
        return "mask"
    for part in metric.modules():
        if isinstance(part, MultioutputWrapper):
            return torch.nan if part.remove_nans else None
        if hasattr(part, "void_color"):
            return "kept"
        ignored = getattr(part, "ignore_index", None)
        if ignored is not None and not isinstance(ignored, Tensor | torch.nn.Module):
            return int(ignored)
    return None


def select(form: Form, gaps: Gaps, prediction: Tensor, label: Tensor, there: Tensor) -> Selected:
    """Return what a metric is given of a batch.

    Args:
        form: "scalars": predictions `[N]`, or class probabilities `[N, C]`, and labels `[N]`. "rows": `[N, D]` both, of
            what has several outputs; classes as scalars. "images": `[N, C, ...]` and labels of the same shape, those of
            classes without the channel.
        gaps: how missing labels are marked, see `gaps_of`; None leaves rows and images out that are not complete.
        prediction: in label space, `[B, ...]`, or `[B, C, ...]` of classes.
        label: `[B, ...]`.
        there: where it is observed, shape of the labels.
    """
    classes = prediction.dim() > label.dim()
    none = torch.zeros((), dtype=torch.int64, device=label.device)
    if form == "scalars" or (form == "rows" and classes):
        return Selected((prediction.movedim(1, -1)[there] if classes else prediction[there], label[there]), none)
    if form == "rows":
        prediction, label, there = (x.movedim(1, -1) if x.dim() > 1 else x[:, None] for x in (prediction, label, there))
        units = there
    else:
        units = there.flatten(1) if there.dim() > 1 else there[:, None]
    whole, some = units.all(-1), units.any(-1)
    if gaps is None:
        return Selected((prediction[whole], label[whole]), (some & ~whole).sum())
    if gaps == "mask":
        label = torch.where(there, label, 0) if label.is_floating_point() else label
        return Selected((prediction[some], label[some], there[some]), none)
    if gaps != "kept":
        label = torch.where(there, label, torch.tensor(gaps, device=label.device).to(label))
    return Selected((prediction[some], label[some]), none)
