"""From what was seen of the kept rows to pictures by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_uncertainty._show import (
    Classified,
    Column,
    Paired,
    cell_of,
    class_colours,
    draw_parity,
    draw_sheet,
    fitted,
    given_colours,
)
from lightning_uncertainty.callbacks._looks import Look, Tell, is_classes, tell_apart
from lightning_uncertainty.callbacks._pairs import counts_of, pairs_of
from lightning_uncertainty.callbacks._panels import (
    Sheet,
    class_sheet,
    event_sheet,
    free_columns,
    number_sheet,
    vector_sheet,
)
from lightning_uncertainty.callbacks._shown import array_of, channel_of, images_of
from lightning_uncertainty.dashboards.pictures import Overlay
from lightning_uncertainty.likelihoods import Likelihood, Prediction

__all__ = ["Drawing", "Show"]

Show = Callable[[Mapping[str, Prediction], Any], "Tensor | Mapping[str, Tensor]"]
_AXES = 12  # at most in a parity plot
_CHANNELS = 3  # at most of a task that are shown one by one


class Drawing:
    """How pictures are drawn.

    Args:
        classes: names of classes, by task.
        colours: colours of classes, by task.
        show: functions of predictions and batch, by name.
        photograph: from pictures to pixels.
        max_size: longest side of a panel.
        points: at most of a task in a parity plot.
        sampled: whether predictions are of several samples.
        tell: is told what cannot be drawn, with a key by which it is told once.
    """

    def __init__(
        self,
        classes: Mapping[str, Sequence[str]],
        colours: Mapping[str, Sequence[Any]],
        show: Mapping[str, Show],
        photograph: Callable[[Tensor], list[np.ndarray]],
        max_size: int,
        points: int,
        sampled: bool,
        tell: Tell,
    ) -> None:
        self._classes, self._colours, self._show = classes, colours, show
        self._photograph, self._max_size, self._points = photograph, max_size, points
        self._sampled, self._tell = sampled, tell

    def pictures(
        self, looks: Sequence[Look], likelihoods: Mapping[str, Likelihood], title: str
    ) -> tuple[dict[str, np.ndarray], list[Overlay]]:
        """Return pictures by name, `[H, W, 3]`, uint8, and the images with their classes laid over.

        What cannot be drawn is told, and left out.
        """
        seen = [look for look in looks if look.rows.shown]
        photos = self._photos(seen)
        of_maps, of_tables = tell_apart(looks, likelihoods)
        cell = self._cell(photos, seen, of_maps)
        made: dict[str, Sheet] = {}
        for name in of_maps:
            with self._refusable(name):
                made |= self._sheets(name, likelihoods[name], seen, cell)
        for name in self._show:
            with self._refusable(name):
                columns = self._free(name, seen, cell)
                sheet = made.get(name, Sheet([]))
                made[name] = sheet._replace(columns=[*sheet.columns, *columns])
        first = [Column("input", [fitted(photo, cell, smooth=True) for photo in photos])] if photos else []
        found = {}
        for name, sheet in made.items():
            head = ", ".join(part for part in (name, title, sheet.note) if part)
            found[name] = draw_sheet(head, [*first, *sheet.columns], cell, sheet.legend)
        axes = self._axes(of_tables, likelihoods, looks)
        if axes:
            with self._refusable("parity_plot"):
                found["parity_plot"] = draw_parity(title, axes)
        overlays: list[Overlay] = []
        with self._refusable("mask_overlay"):
            overlays = self._overlays(first, [name for name in of_maps if is_classes(likelihoods[name])], seen, cell)
        return found, overlays

    # -- sheets --------------------------------------------------------------------------------------------------------

    def _photos(self, seen: Sequence[Look]) -> list[np.ndarray]:
        """Return the pictures that are shown; none where a batch has none, or they cannot be made."""
        photos: list[np.ndarray] = []
        with self._refusable("input"):
            for look in seen:
                if look.picture is None:
                    return []
                places = torch.tensor(list(look.rows.shown.values()), device=look.picture.device)
                photos += self._photograph(look.picture[places])
            return photos
        return []

    def _cell(self, photos: list[np.ndarray], seen: Sequence[Look], of_maps: Sequence[str]) -> tuple[int, int]:
        if photos:
            return cell_of(photos[0].shape[0], photos[0].shape[1], self._max_size)
        sizes = [look.predictions[name].mean.shape[-2:] for look in seen for name in of_maps]
        height, width = sizes[0] if sizes else (self._max_size, self._max_size)
        return cell_of(height, width, self._max_size)

    def _sheets(
        self, name: str, likelihood: Likelihood, seen: Sequence[Look], cell: tuple[int, int]
    ) -> dict[str, Sheet]:
        """Return the sheet of a task, or of each of its channels."""
        images = [image for look in seen for image in images_of(look, name, is_classes(likelihood))]
        if not images:
            return {}
        channels = len(images[0].mean)
        if is_classes(likelihood):
            names, colours = self.named(name, channels)
            return {name: class_sheet(images, cell, names, colours, self._sampled)}
        if likelihood.predictive != "event" and channels in (2, 3):
            return {name: vector_sheet(images, cell, self._sampled)}
        draw = event_sheet if likelihood.predictive == "event" else number_sheet
        if channels == 1:
            return {name: draw(images, cell, self._sampled)}
        if channels > _CHANNELS:
            what = f"the {channels} channels of task {name!r} in a picture: found more than {_CHANNELS}; "
            self._tell(f"channels {name}", f"{what}it shows the first, give show={{{name!r}: ...}} for others")
        return {
            f"{name}/{channel}": draw([channel_of(image, channel) for image in images], cell, self._sampled)
            for channel in range(min(channels, _CHANNELS))
        }

    def named(self, name: str, count: int) -> tuple[list[str], np.ndarray]:
        """Return names and colours of a task's classes."""
        names = [str(one) for one in self._classes.get(name, range(count))]
        given = self._colours.get(name)
        return names, class_colours(count) if given is None else given_colours(given)

    def _free(self, name: str, seen: Sequence[Look], cell: tuple[int, int]) -> list[Column]:
        """Return the columns of a function of the user's."""
        panels: dict[str, list[np.ndarray]] = {}
        for look in seen:
            given = self._show[name](look.predictions, look.batch)
            for title, values in (given if isinstance(given, Mapping) else {name: given}).items():
                for place in look.rows.shown.values():
                    panels.setdefault(title, []).append(array_of(values[place]))
        return free_columns(list(panels.items()), cell)

    def _overlays(
        self, first: Sequence[Column], names: Sequence[str], seen: Sequence[Look], cell: tuple[int, int]
    ) -> list[Overlay]:
        if not first or not names:
            return []
        masks: list[dict[str, tuple[np.ndarray, Mapping[int, str]]]] = [{} for _ in first[0].panels]
        for name in names:
            images = [image for look in seen for image in images_of(look, name, classes=True)]
            titles, _ = self.named(name, len(images[0].mean))
            if len(titles) > 255:
                self._tell(
                    f"overlay {name}", f"{len(titles)} classes of task {name!r} over a picture: found room for 255"
                )
                continue
            known = dict(enumerate(titles))
            for mask, image in zip(masks, images, strict=True):
                mask[f"{name} prediction"] = (_fitted_mask(image.mean.argmax(0), cell), known)
                if image.label is not None:
                    label = np.where(np.isnan(image.label), len(titles), image.label)
                    mask[f"{name} truth"] = (_fitted_mask(label, cell), {**known, len(titles): "no label"})
        return [Overlay(picture, mask) for picture, mask in zip(first[0].panels, masks, strict=True) if mask]

    # -- tables --------------------------------------------------------------------------------------------------------

    def _axes(
        self, names: Sequence[str], likelihoods: Mapping[str, Likelihood], looks: Sequence[Look]
    ) -> list[Paired | Classified]:
        axes: list[Paired | Classified] = []
        for name in names:
            pairs = [(look.predictions[name], look.labels[name]) for look in looks if name in look.labels]
            if not pairs:
                continue
            with self._refusable(name):
                if is_classes(likelihoods[name]):
                    axes += counts_of(name, pairs, self.named(name, pairs[0][0].mean.shape[1])[0])
                else:
                    axes += pairs_of(name, pairs, self._points, _AXES)
        if len(axes) > _AXES:
            left = ", ".join(one.name for one in axes[_AXES:])
            self._tell("axes", f"at most {_AXES} scalars in a parity plot: found {len(axes)}; left out are {left}")
        return axes[:_AXES]

    def _refusable(self, name: str) -> Any:
        return _Refusable(name, self._tell)


class _Refusable:
    """Tells of what goes wrong within, as a picture is no reason to end a fit."""

    def __init__(self, name: str, tell: Tell) -> None:
        self._name, self._tell = name, tell

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        said = f"{kind.__name__}: {' '.join(str(error).split())}"
        self._tell(f"draw {self._name}", f"{self._name!r} in a picture: found an error ({said}); it goes on without")
        return True


def _fitted_mask(classes: np.ndarray, cell: tuple[int, int]) -> np.ndarray:
    return fitted(classes.astype(np.uint8), cell)
