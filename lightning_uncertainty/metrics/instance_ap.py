"""Average precision of instances that do not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_uncertainty.instances import majority_classes
from lightning_uncertainty.instances.offsets import check_whole, numbered

__all__ = ["InstanceAP"]


class _Listed(NamedTuple):
    """The instances of a batch, numbered from 1 in each image.

    Attributes:
        number: of the instance of each pixel `[B, H, W]`; 0 for none.
        classes: by image and number `[B, N + 1]`.
    """

    number: Tensor
    classes: Tensor


class InstanceAP(Metric):
    r"""Average precision of predicted instances, by class over all images, then the mean over classes: AP50 of COCO.

    In each image predictions, the surest first, take the true instance of their class with the highest IoU that is
    left; one of at least the threshold is a hit. Over all images

    .. math::  AP = \frac{1}{101} \sum_{r=0}^{100} \max_{R(s) \ge r / 100} P(s),

    where `P` and `R` are precision and recall of predictions with a score of `s` at least; those of equal scores count
    at once, so that the order of images and ranks does not matter. Classes without true instances have none.

    Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and its `pycocotools`.

    Args:
        thresholds: the least IoU of a hit, or several to average over: `[0.5, 0.55, ..., 0.95]` is COCO's AP.
        min_area: pixels below which a true instance is not counted, and neither is what is predicted there.
        ignore_index: the true class of pixels that are not labelled, or of regions of many objects; a prediction that
            hits nothing and lies there by at least the threshold is not counted.
        average: "macro" is the mean over classes, "none" a dict with the value of each, by its number as text.

    Raises:
        ValueError: a threshold is not in (0, 1], an area is negative, or there is no such average.

    Example:
        >>> ids, classes = torch.tensor([[1, 1, 0, 2, 2, 2]]), torch.tensor([[3, 3, 0, 3, 3, 3]])
        >>> found = torch.tensor([[1, 1, 0, 2, 0, 0]])  # one of two, and a part of the other
        >>> metric = InstanceAP()
        >>> metric.update(found, classes, ids, classes)
        >>> metric.compute()
        tensor(0.5050)
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    found: list[Tensor]
    truths: list[Tensor]

    def __init__(
        self,
        thresholds: float | Sequence[float] = 0.5,
        *,
        min_area: int = 0,
        ignore_index: int | None = None,
        average: Literal["macro", "none"] = "macro",
    ) -> None:
        super().__init__()
        self.thresholds = (thresholds,) if isinstance(thresholds, int | float) else tuple(thresholds)
        if not self.thresholds or not all(0 < threshold <= 1 for threshold in self.thresholds):
            raise ValueError(f"thresholds should be one or more above 0, up to 1: found {thresholds!r}")
        if min_area < 0:
            raise ValueError(f"min_area should be 0 or more pixels: found {min_area!r}")
        if average not in ("macro", "none"):
            raise ValueError(f"average should be 'macro' or 'none': found {average!r}")
        self.min_area, self.ignore_index, self.average = min_area, ignore_index, average
        self.add_state("found", [], dist_reduce_fx="cat")  # class, score and hits, one prediction after the other
        self.add_state("truths", [], dist_reduce_fx="cat")  # classes

    def update(
        self, ids: Tensor, classes: Tensor, target_ids: Tensor, target_classes: Tensor, scores: Tensor | None = None
    ) -> None:
        """Add images, all `[B, H, W]` or `[H, W]`.

        Args:
            ids: predicted instances, whole numbers; 0 and less for none.
            classes: predicted class of each pixel; an instance has that of most of its pixels.
            target_ids: true instances.
            target_classes: true class of each pixel.
            scores: how sure each pixel is, such as its probability; an instance is as sure as the mean of its pixels.
                Where None it is the surer the more pixels it has.

        Raises:
            ValueError: maps are no whole numbers, or of several shapes.
        """
        check_whole(ids=ids, classes=classes, target_ids=target_ids, target_classes=target_classes)
        if scores is not None and scores.shape != ids.shape:
            raise ValueError(f"scores should have the shape of ids {list(ids.shape)}: found {list(scores.shape)}")
        void = torch.zeros_like(target_ids, dtype=torch.bool)
        if self.ignore_index is not None:
            void = target_classes == self.ignore_index
        shape = (-1, *ids.shape[-2:])
        predicted = _listed(ids.reshape(shape), classes.reshape(shape))
        true = _listed(target_ids.masked_fill(void, 0).reshape(shape), target_classes.reshape(shape))
        sizes = (len(predicted.number), predicted.classes.shape[1], true.classes.shape[1])
        common = _counts(predicted.number * sizes[2] + true.number, sizes[1] * sizes[2]).reshape(sizes).cpu()
        area, true_area = common.sum(2), common.sum(1)
        sure = area.double()
        if scores is not None:
            total = torch.zeros(sizes[0] * sizes[1], dtype=torch.float32, device=ids.device)
            total.index_add_(0, _through(predicted.number, sizes[1]), scores.detach().flatten().float())
            sure = total.cpu().reshape(sure.shape) / area.clamp(min=1)
        small = true_area < self.min_area
        kinds, true_kinds = predicted.classes.cpu(), true.classes.cpu()
        hits = self._hits(common, sure, kinds[:, :, None] == true_kinds[:, None], small)
        in_void = _counts(torch.where(void.reshape(shape), predicted.number, 0), sizes[1]).cpu()
        out = in_void[..., None] >= area[..., None] * hits.new_tensor(self.thresholds)
        out |= (area < self.min_area)[..., None]
        hits = torch.where((hits == 0) & out, torch.nan, hits)
        rows = torch.cat([kinds[..., None], sure[..., None], hits], -1)
        there, true_there = area > 0, (true_area > 0) & ~small
        there[:, 0], true_there[:, 0] = False, False
        self.found.append(rows[there].flatten().to(self.device, torch.float32))  # in a model of half precision, too
        self.truths.append(true_kinds[true_there].to(self.device, torch.float32))

    def compute(self) -> Tensor | dict[str, Tensor] | None:
        """Return the value, of 0 to 1; None, or an empty dict, where there was no true instance."""
        truths = torch.cat([torch.as_tensor(part).cpu() for part in self._parts(self.truths)])
        rows = torch.cat([torch.as_tensor(part).cpu() for part in self._parts(self.found)])
        rows = rows.reshape(-1, 2 + len(self.thresholds)).double()
        values = {
            str(int(kind)): _average_precision(rows[rows[:, 0] == kind, 1:], int((truths == kind).sum())).to(
                self.device, torch.float32
            )
            for kind in torch.unique(truths)
        }
        if self.average == "none":
            return values
        return torch.stack(list(values.values())).mean() if values else None

    def _sync_dist(self, *arguments: Any, **options: Any) -> None:
        for state in (self.found, self.truths):
            if not state:  # what torchmetrics puts there has the type of the model
                state.append(torch.zeros(0, dtype=torch.float32, device=self.device))
        super()._sync_dist(*arguments, **options)

    @staticmethod
    def _parts(state: Tensor | list[Tensor]) -> list[Tensor]:
        return [*state, torch.zeros(0)] if isinstance(state, list) else [state]

    def _hits(self, common: Tensor, sure: Tensor, alike: Tensor, small: Tensor) -> Tensor:
        """Return whether each prediction is a hit at each threshold `[B, N + 1, T]`; NaN of an instance not counted."""
        iou = common.double() / (common.sum(2, keepdim=True) + common.sum(1, keepdim=True) - common).clamp(min=1)
        close = alike & (iou >= min(self.thresholds))
        close[:, 0], close[:, :, 0] = False, False
        image, one, other = close.nonzero(as_tuple=True)
        columns = (-sure[image, one], small[image, other], -iou[close], image, one, other)
        pairs = sorted(zip(*(column.tolist() for column in columns), strict=True))
        hits = torch.zeros(*sure.shape, len(self.thresholds), dtype=torch.float64)
        for place, threshold in enumerate(self.thresholds):
            taken: set[tuple[str, int, int]] = set()
            for _, ignored, negated, image_of, first, second in pairs:
                ends = {("predicted", image_of, first), ("true", image_of, second)}
                if -negated >= threshold and not ends & taken:
                    taken |= ends
                    hits[image_of, first, place] = torch.nan if ignored else 1.0
        return hits


def _listed(ids: Tensor, classes: Tensor) -> _Listed:
    inside, of_pixel, count = numbered(ids)
    there = torch.bincount(of_pixel, minlength=count).reshape(len(ids), count // max(1, len(ids))) > 0
    number = torch.zeros_like(ids, dtype=torch.int64)
    number[inside] = there.cumsum(1).flatten()[of_pixel]
    kinds = torch.zeros(len(ids), int(number.max()) + 1 if number.numel() else 1, dtype=torch.int64, device=ids.device)
    kinds.view(-1)[_through(number, kinds.shape[1])] = majority_classes(ids, classes).long().flatten()
    return _Listed(number, kinds)


def _through(number: Tensor, count: int) -> Tensor:
    """Return numbers below a count `[B, H, W]`, counted through the batch, `[B H W]`."""
    return (number + count * torch.arange(len(number), device=number.device)[:, None, None]).flatten()


def _counts(number: Tensor, count: int) -> Tensor:
    """Return how many pixels have each number `[B, count]`."""
    return torch.bincount(_through(number, count), minlength=len(number) * count).reshape(len(number), count)


def _average_precision(rows: Tensor, count: int) -> Tensor:
    """Return the mean over thresholds, of scores and hits `[N, 1 + T]` of a class with so many true instances."""
    values = []
    for hits in rows[:, 1:].T:
        scores, order = rows[~hits.isnan(), 0].sort(descending=True)
        hit = hits[~hits.isnan()][order].cumsum(0)
        last = torch.ones_like(scores, dtype=torch.bool)
        last[:-1] = scores[:-1] != scores[1:]
        precision = (hit / torch.arange(1, len(hit) + 1))[last].flip(0).cummax(0).values.flip(0)
        first = torch.searchsorted(
            100 * hit[last], torch.arange(101.0, dtype=hit.dtype) * count
        )  # recall by hundredths
        values.append(torch.cat([precision, precision.new_zeros(1)])[first.clamp(max=len(precision))].mean())
    return torch.stack(values).mean()
