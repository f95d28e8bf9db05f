"""Shows a few validation images every n epochs: input, truth, prediction, error and uncertainty of every task.

Long, but one file: what one callback may be asked for, and its hooks, each a few lines.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_uncertainty._show import given_colours, require_matplotlib
from lightning_uncertainty._tensors import by_name
from lightning_uncertainty.callbacks._drawing import Drawing, Show
from lightning_uncertainty.callbacks._fixed_rows import FixedRows, Rows, rows_of
from lightning_uncertainty.callbacks._looks import Look, check_classes, look_at, tell_apart
from lightning_uncertainty.callbacks._outputs import Forward, undisturbed
from lightning_uncertainty.callbacks._photographs import Where, photographs, picture_of
from lightning_uncertainty.callbacks.base import TaskCallback
from lightning_uncertainty.dashboards.loggers import refusable
from lightning_uncertainty.dashboards.pictures import Overlay, log_pictures, save_pictures, takes_pictures
from lightning_uncertainty.tasks.task import check_known

__all__ = ["PredictionImages"]


class PredictionImages(TaskCallback):
    """Show predictions for a few fixed validation images, every n epochs, in wandb, TensorBoard, MLflow or a folder.

    Every task that predicts a map has a sheet, `pictures/<task>`: a row for each image, and columns input, truth,
    prediction, error and uncertainty.

    - Classes are in class colours, wrong pixels red, with the entropy of each pixel.
    - Numbers, as depth, are in viridis, truth and prediction on one scale (1 % to 99 % of the labels). The size of the
      error and σ are in magma, on that of the errors: where σ is true, the two look alike. σ of a heteroscedastic head
      is a column; that of a weighting is one number, in the title.
    - Vectors of two channels, as offsets, have a hue for their direction, white at zero; of three, as normals, red,
      green and blue. Their error is the length of the difference, of normals the angle.
    - With `samples` above 1 the epistemic uncertainty is a column too.

    Tasks without maps, as of tables, are in one parity plot, `pictures/parity_plot`: predictions against truth with σ,
    classes as how often each was taken for which. wandb gets `pictures/mask_overlay` besides: the images with the
    classes, by name, as masks to switch on and off. What has no label is grey.

    Pictures are drawn in the first validation, then whenever n epochs have passed, and at the end of the fit, by rank
    zero; also in `trainer.validate`. Images are those that the loader gives first, the same in every validation and
    after a resume unless it shuffles. Random states, metrics, BatchNorm and modes stay as they were. Outputs are those
    that `task_step` or `task_losses` has in `validation_step`, which is run up to there once more; else what `forward`
    returns of the picture, by task; or say so in `forward=`. An adopted module, and one that computes its losses
    itself, needs that where its `forward` returns anything else.

    Args:
        images: how many, the first ones; or which, by their number in the loader (of rank zero).
        every_n_epochs: epochs between two drawings.
        image: key, place in a tuple, or function of the batch that gives the pictures `[B, C, H, W]`. Where None, what
            a `MultiTaskModule` takes, a key such as "image" or "x", or the first of a tuple.
        forward: from the module that the Trainer runs and a batch to what the head of each task returns, by task.
        targets: by task, where labels are, as `image`, for tasks that do not say so themselves.
        tasks: which to show; all but auxiliary ones where None.
        classes: names of classes, by task.
        colours: colours of classes, by task: triples from 0 to 255, or texts as "#804080".
        show: by name, a function of predictions (`Prediction` by task) and batch that returns more panels, by title or
            one alone: whole numbers `[B, H, W]` are ids of instances, in distinct colours, 0 for none; others are
            numbers; `[B, 2, H, W]` vectors; `[B, 3, H, W]` pixels, uint8 or from 0 to 1. The name of a task puts them
            into its sheet.
        mean: of each channel, by which pictures were normalised. Without it and `to_image` each is stretched so that
            its 1 % and 99 % are black and white; uint8 is shown as it is.
        std: likewise.
        to_image: makes pictures of what `image` finds: uint8, or from 0 to 1.
        samples: passes; more than one with dropout.
        folder: where to write PNG files as well. Where None, they are written only if no logger takes pictures, to
            "pictures" beside its files, or below the Trainer's `default_root_dir`.
        max_size: longest side of a panel, in pixels.
        points: at most in a parity plot, the first of validation; fewer where they need more than 64 MiB.
        dataloader_idx: which validation loader images are of.
        prefix: put before every key.
        module: path of the `MultiTaskMixin` in the module that the Trainer runs, as "net"; needed where it has several.

    Raises:
        ValueError: a number is out of range, or `mean` and `to_image` are both there; or, at the start of a fit or in
            its first validation: a task is unknown, or has another number of classes, a colour is none, or outputs,
            pictures or labels are not where they were said to be.
        TypeError: (at the start of a fit) the module is no `MultiTaskMixin`.
        ModuleNotFoundError: (at the start of a fit) matplotlib is not installed.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> pictures = PredictionImages(images=4, classes={"semantics": ["road", "car", "sky"]}, folder="pictures")
        >>> trainer = Trainer(callbacks=[pictures], accelerator="cpu", logger=False)
    """

    def __init__(
        self,
        images: int | Sequence[int] = 4,
        every_n_epochs: int = 1,
        *,
        image: Where | None = None,
        forward: Forward | None = None,
        targets: Mapping[str, Where] | None = None,
        tasks: Sequence[str] | None = None,
        classes: Mapping[str, Sequence[str]] | None = None,
        colours: Mapping[str, Sequence[str | Sequence[int]]] | None = None,
        show: Mapping[str, Show] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        to_image: Callable[[Tensor], Tensor] | None = None,
        samples: int = 1,
        folder: str | Path | None = None,
        max_size: int = 192,
        points: int = 512,
        dataloader_idx: int = 0,
        prefix: str = "pictures/",
        module: str | None = None,
    ) -> None:
        super().__init__(module)
        which = list(range(images)) if isinstance(images, int) else list(images)
        if not which or not all(isinstance(one, int) and one >= 0 for one in which):
            raise ValueError(f"images should be a number above 0, or numbers of rows from 0 on: found {images!r}")
        least = {"every_n_epochs": 1, "samples": 1, "max_size": 16, "points": 1, "dataloader_idx": 0}
        given = {
            "every_n_epochs": every_n_epochs,
            "samples": samples,
            "max_size": max_size,
            "points": points,
            "dataloader_idx": dataloader_idx,
        }
        for name, number in given.items():
            if not isinstance(number, int) or number < least[name]:
                raise ValueError(f"{name} should be a whole number, at least {least[name]}: found {number!r}")
        if to_image is not None and (mean is not None or std is not None):
            raise ValueError("pictures should be made by to_image, or of mean and std: found both; leave one out")
        self.images, self.every_n_epochs, self.samples, self.prefix = which, every_n_epochs, samples, prefix
        self.image, self.forward, self.folder, self.points = image, forward, folder, points
        self.dataloader_idx, self.tasks = dataloader_idx, None if tasks is None else list(tasks)
        self.targets = by_name(targets, "targets", "{'depth': 'depth_m'}")
        self.classes = by_name(classes, "classes", "{'semantics': ['road', 'car']}")
        self.colours = by_name(colours, "colours", "{'semantics': ['#804080', '#000090']}")
        self.show = by_name(show, "show", "{'instances': function}")
        self._drawing = Drawing(
            classes=self.classes,
            colours=self.colours,
            show=self.show,
            photograph=partial(photographs, mean=mean, std=std, to_image=to_image),
            max_size=max_size,
            points=points,
            sampled=samples > 1,
            tell=self._tell_once,
        )
        self._rows, self._closed = FixedRows(which, points), False
        self._epoch: int | None = None  # of the latest drawing in a fit
        self._step: int | None = None
        self._warned: set[str] = set()
        self._quiet = False  # on ranks that do not draw

    @property
    def state_key(self) -> str:
        """What its state is kept under: of several callbacks each has its own."""
        return self._generate_state_key(prefix=self.prefix, module=self.module)  # type: ignore[no-any-return]

    def state_dict(self) -> dict[str, Any]:
        """Return when the latest pictures were drawn."""
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._epoch, self._step = state_dict["epoch"], state_dict["step"]

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin with other images, as loaders may be others."""
        super().setup(trainer, pl_module, stage)
        self._rows, self._closed = FixedRows(self.images, self.points), False
        self._warned, self._told, self._quiet = set(), set(), not trainer.is_global_zero

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Look whether all that was asked for is there."""
        self._check(trainer, pl_module)
        if not trainer.enable_validation and not trainer.barebones:
            self._tell_once("validation", "images of validation: found a fit without; give it a loader of those")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin anew unless the fit goes on from what was drawn."""
        if self._step is not None and (self._step > trainer.global_step or trainer.global_step == 0):
            self._epoch = self._step = None

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Look likewise, where there is no fit."""
        if trainer.state.fn == "validate":
            self._check(trainer, pl_module)
        if not self._closed:
            self._rows = FixedRows(self.images, self.points)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep what is needed of a batch, before its step may change it."""
        if self._closed or trainer.barebones or dataloader_idx != self.dataloader_idx or not self._rows.wants_more():
            return
        rows = rows_of(batch)
        if rows is None:
            picture = picture_of(batch, self.image, pl_module)
            rows = None if picture is None or not picture.dim() else len(picture)
        self._rows.add(batch, rows, batch_idx)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Draw in the last batch, as long as weights are those of validation: an average may leave at its end."""
        if trainer._evaluation_loop.batch_progress.is_last_batch and not trainer.barebones:
            self._end_validation(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Draw what the fit has come to."""
        if self._closed and self._step != trainer.global_step and not trainer.barebones:
            self._draw(trainer, pl_module, ended=1)

    # -- within --------------------------------------------------------------------------------------------------------

    def _check(self, trainer: Any, pl_module: Any) -> None:
        """Look whether there is something to draw, and to draw with."""
        net = self.find_tasks(trainer, pl_module)
        require_matplotlib("PredictionImages")
        for colours in self.colours.values():
            given_colours(colours)
        known = net.task_likelihoods()
        check_known([*(self.tasks or ()), *self.targets, *self.classes, *self.colours], known)

    def _end_validation(self, trainer: Any, pl_module: Any) -> None:
        """Draw if it is due; in the sanity check all but log, so that mistakes are told before an epoch has passed."""
        if trainer.sanity_checking:
            self._look(trainer, pl_module, "sanity check")
            return
        if not self._closed:
            self._closed = True
            found = sum(len(rows.shown) for rows in self._rows.kept)
            wanted = len(self._rows.images)
            if found < wanted:
                what = f"{wanted} images of validation loader {self.dataloader_idx}: found {found}"
                self._tell_once("images", f"{what}; it shows these")
        epoch = trainer.current_epoch
        fitting = trainer.state.fn == "fit"
        if not fitting or self._epoch is None or epoch - self._epoch >= self.every_n_epochs:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: Any, pl_module: Any, ended: int = 0) -> None:
        """Draw, and give loggers or a folder what was drawn.

        Args:
            trainer: that runs the module.
            pl_module: the module.
            ended: 1 where the counts of epochs and steps are those of the next already, else 0.
        """
        epoch = trainer.current_epoch - ended
        step = max(0, trainer.fit_loop.epoch_loop._batches_that_stepped - ended)  # as Lightning's rows of validation
        if trainer.state.fn == "fit":
            self._epoch, self._step = epoch, trainer.global_step
        pictures, overlays = self._look(trainer, pl_module, f"epoch {epoch}, step {step}")
        if not pictures:
            return
        keyed = {f"{self.prefix}{name}": picture for name, picture in pictures.items()}
        masks = {f"{self.prefix}mask_overlay": overlays} if overlays else {}
        taken = False
        for logger in trainer.loggers:
            with refusable(logger, "pictures", self._told):
                if takes_pictures(logger):
                    log_pictures(logger, keyed, masks, step)
                    taken = True
        folder = self.folder if self.folder is not None or taken else self._beside(trainer)
        if folder is not None:
            try:
                save_pictures(folder, pictures, step)
            except OSError as error:
                self._tell_once("folder", f"pictures in {folder}: found that it cannot be written ({error})")

    def _beside(self, trainer: Any) -> Path:
        """Return a folder where pictures are found by whoever looks for those of a run."""
        places = [getattr(logger, "log_dir", None) for logger in trainer.loggers]
        place = next((place for place in places if isinstance(place, str)), trainer.default_root_dir)
        return Path(place, self.prefix.strip("/") or "pictures")

    def _look(self, trainer: Any, pl_module: Any, title: str) -> tuple[dict[str, Any], list[Overlay]]:
        """Return pictures by name, and overlays. All ranks predict, as a forward of shards needs all; one draws."""
        net = self.tasks_of(pl_module)
        likelihoods = net.task_likelihoods()
        loader = (self.dataloader_idx,) if len(trainer.num_val_batches) > 1 else ()

        def look(rows: Rows) -> Look:
            return look_at(
                pl_module,
                net,
                rows,
                loader=loader,
                image=self.image,
                targets=self.targets,
                forward=self.forward,
                samples=self.samples,
                tasks=self._wanted(net),
                tell=self._tell_once,
            )

        with undisturbed(trainer, pl_module):
            looks = [look(rows) for rows in self._rows.kept[:1]]
            if self._closed and not tell_apart(looks, likelihoods)[1]:
                self._rows.drop_tables()
            looks += [look(rows) for rows in self._rows.kept if rows.number != looks[0].rows.number]
            check_classes(looks, likelihoods, {"classes": self.classes, "colours": self.colours})
            if not trainer.is_global_zero or not looks:
                return {}, []
            return self._drawing.pictures(looks, likelihoods, title)

    def _wanted(self, net: Any) -> list[str]:
        """Return the tasks that are shown; terms without labels never are."""
        likelihoods = net.task_likelihoods()
        chosen = (
            [name for name in likelihoods if name not in net.auxiliary_tasks()] if self.tasks is None else self.tasks
        )
        return [name for name in chosen if not likelihoods[name].constant]

    def _tell_once(self, key: str, what: str) -> None:
        """Warn of what cannot be shown, once in a fit, on the rank that draws."""
        if key not in self._warned and not self._quiet:
            self._warned.add(key)
            warnings.warn(f"PredictionImages should show {what}", stacklevel=2)
