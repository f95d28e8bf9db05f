"""Scenes: classes, instances and depth from one image by one network, as in the paper of uncertainty weighting.

    python -m lightning_uncertainty.examples.scenes

draws 1000 random streets, once, trains a small network on 800 of them within five minutes on two cores, prints σ and
the metrics of each task on streets that it has not seen, and writes pictures and a report. Further:

    --root DIR --layout cityscapes   the official folders leftImg8bit, gtFine and disparity
    --root DIR --layout mtan         arrays image, label, depth and normal, as MTAN and LibMTL have NYUv2 and Cityscapes
    --compare                        uncertainty and equal weights beside single tasks, over several seeds
    --predict PICTURE --ckpt X       classes, instances and depth of a photograph, as one PNG

The method is Kendall, Gal & Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
Semantics", CVPR 2018. Long, but one file: what the command takes, the data and the module of one example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader
from torchmetrics import JaccardIndex, MeanAbsoluteError

from lightning_uncertainty import MultiTaskModule, Task
from lightning_uncertainty.examples._scene_cache import Streets, cache_folder
from lightning_uncertainty.examples._scene_folders import CITYSCAPES, WITHOUT, Cityscapes, MTANArrays, check_root
from lightning_uncertainty.examples._scene_net import SceneDecoder, SceneEncoder, SceneNet
from lightning_uncertainty.examples._scene_samples import Scenes, instances_within
from lightning_uncertainty.examples.streets import CLASSES, THINGS
from lightning_uncertainty.likelihoods import Categorical, HeteroscedasticLaplace, Likelihood
from lightning_uncertainty.metrics import InstanceAP
from lightning_uncertainty.tasks import Stage
from lightning_uncertainty.weightings import Weighting

__all__ = ["SceneData", "SceneDecoder", "SceneEncoder", "SceneModule", "SceneNet", "Scenes"]

OF_CITYSCAPES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")  # that have instances
LOOKED_AT = 32  # scenes for the scales of the labels


class SceneData(LightningDataModule):
    """Scenes for training, validation and testing; batches are dicts, as samples of `Scenes` are.

    - "streets": random streets, drawn once and kept in `root`, in LIGHTNING_UNCERTAINTY_CACHE where there is none, else
      in the cache of the user. Training, validation and test streets are drawn from seeds of their own.
    - "cityscapes": the official folders leftImg8bit, gtFine (labelIds and instanceIds) and disparity, brought to a
      size. Disparities are in pixels of the pictures as they are then.
    - "mtan": train and val with arrays N.npy in image, label, depth, and normal where there is one, as they lie there.

    Of the latter two, val is for testing, as is usual, and every tenth picture of train for validation.

    Args:
        root: folder of the scenes.
        layout: how they lie there.
        size: height and width, of streets and of Cityscapes.
        batch_size: of all loaders.
        streets: how many there are for training, validation and testing.
        classes: how many there are, under "mtan".
        num_workers: processes that read.

    Attributes:
        classes: their names.
        things: the numbers of those classes that have instances.

    Raises:
        ValueError: there is no such layout, a size or numbers of streets are not as many, or another number is too
            small; or (when the data are set up) the folder does not fit it.

    Example:
        >>> import tempfile
        >>> data = SceneData(tempfile.mkdtemp(), size=(32, 64), batch_size=2, streets=(2, 2, 2))
        >>> batch = next(iter(data.val_dataloader()))
        >>> {name: list(part.shape) for name, part in batch.items() if name != "ids"}  # doctest: +NORMALIZE_WHITESPACE
        {'image': [2, 3, 32, 64], 'semantics': [2, 32, 64], 'disparity': [2, 1, 32, 64], 'instances': [2, 2, 32, 64]}
    """

    def __init__(
        self,
        root: str | Path | None = None,
        layout: str = "streets",
        *,
        size: tuple[int, int] = (128, 256),
        batch_size: int = 8,
        streets: tuple[int, int, int] = (800, 100, 100),
        classes: int = 13,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        names = {"streets": CLASSES, "cityscapes": CITYSCAPES}
        if layout not in (*names, "mtan"):
            raise ValueError(f"layout should be streets, cityscapes or mtan: found {layout!r}")
        if layout != "streets" and root is None:
            raise ValueError(f"root should be the folder of the scenes under layout {layout!r}: found none; name it")
        for name, numbers, count in (("size", size, 2), ("streets", streets, 3)):
            if not isinstance(numbers, Sequence) or len(numbers) != count:
                raise ValueError(f"{name} should be {count} whole numbers: found {numbers!r}; give as many")
        least_of = {"batch_size": (batch_size, 1), "classes": (classes, 2), "num_workers": (num_workers, 0)}
        for name, (number, least) in least_of.items():
            if number < least:
                raise ValueError(f"{name} should be at least {least}: found {number}")
        self.root = Path(cache_folder() if root is None else root).expanduser()
        self.layout, self.size, self.batch_size, self.num_workers = layout, (size[0], size[1]), batch_size, num_workers
        self.counts = dict(zip(("train", "val", "test"), streets, strict=True))
        self.classes = names.get(layout, tuple(f"class {number}" for number in range(classes)))
        things = {"streets": THINGS, "cityscapes": OF_CITYSCAPES}.get(layout, ())
        self.things = tuple(self.classes.index(name) for name in things)

    def scenes(self, split: str) -> Scenes:
        """Return the scenes of "train", "val" or "test", drawn if they are streets that are not there yet.

        Raises:
            ValueError: the folder does not fit the layout.
        """
        training = split == "train"
        if self.layout == "streets":
            return Scenes(Streets(self.root, split, self.counts[split], self.size), training=training)
        check_root(self.root, self.layout)
        theirs = "val" if split == "test" else "train"
        found: Any
        if self.layout == "cityscapes":
            found = Cityscapes(self.root, theirs, self.size)
        else:
            found = MTANArrays(self.root, theirs, len(self.classes))
        if split != "test":
            found.files = [files for number, files in enumerate(found.files) if (number % 10 > 0) == training]
            if not found.files:
                raise ValueError(f"{self.root} should have two pictures for training at least: found one")
        return Scenes(found, training=training)

    def scales(self) -> dict[str, tuple[float, float]]:
        """Return mean and standard deviation of the labels of each task besides "semantics", in the first scenes.

        Raises:
            ValueError: a task has no label in any of them.
        """
        scenes = self.scenes("train")
        samples = [Scenes(scenes.raw)[index] for index in range(min(LOOKED_AT, len(scenes)))]
        self._known(samples, "semantics")
        found: dict[str, tuple[float, float]] = {}
        for task in ("instances", "disparity", "depth", "normals"):
            if task in samples[0]:
                labels = self._known(samples, task)
                mean, std = (float(f"{number.item():.3g}") for number in (labels.mean(), labels.std()))
                found[task] = (0.0 if task == "instances" else mean, std)
        return found

    def _known(self, samples: Sequence[Mapping[str, Tensor]], task: str) -> Tensor:
        """Return the labels of a task that are known in some samples.

        Raises:
            ValueError: there are not two.
        """
        labels = torch.cat([sample[task].flatten() for sample in samples])
        labels = labels[labels != WITHOUT] if task == "semantics" else labels[~labels.isnan()]
        if len(labels) < 2:
            raise ValueError(
                f"labels of {task!r} should be known somewhere in the first {len(samples)} scenes of {self.root}: "
                "found none; give scenes that have some first, in the order of their names"
            )
        return labels

    def prepare_data(self) -> None:
        for split in self.counts:
            self.scenes(split)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("train", shuffle=True, drop_last=len(self.scenes("train")) >= self.batch_size)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("test")

    predict_dataloader = test_dataloader

    def _loader(self, split: str, **options: Any) -> DataLoader[dict[str, Tensor]]:
        options |= {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        return DataLoader(self.scenes(split), batch_size=self.batch_size, **options)


class SceneModule(MultiTaskModule):
    """A `SceneNet` with its tasks, losses and metrics; its checkpoints can be read without arguments.

    Args:
        classes: their names.
        scales: see `SceneNet`.
        weighting: how the losses become one.
        things: the numbers of those classes that have instances.
        likelihood: of the tasks besides "semantics"; "l1_kendall" is the paper's, to the letter.
        heteroscedastic: those of these tasks that have a σ for every pixel, by a Laplace likelihood.
        dropout: how often a channel of a decoder is dropped; `predict_step` then takes `samples` passes.
        samples: see `MultiTaskModule`.
        encoder: see `SceneEncoder`.
        pretrained: whether the encoder starts from its weights.
        width: of the images in pixels, to which a photograph is brought.
        lr: first learning rate of the network.
        epochs: at whose end the rate is a fiftieth.
    """

    def __init__(
        self,
        classes: Sequence[str],
        scales: Mapping[str, Sequence[float]],
        weighting: Weighting | None = None,
        *,
        things: Sequence[int] = (),
        likelihood: str = "laplace",
        heteroscedastic: Sequence[str] = (),
        dropout: float = 0.0,
        samples: int = 1,
        encoder: str = "small",
        pretrained: bool = True,
        width: int = 256,
        lr: float = 2e-3,
        epochs: int = 12,
    ) -> None:
        iou = JaccardIndex("multiclass", num_classes=len(classes), ignore_index=WITHOUT)
        tasks = {"semantics": Task(Categorical(ignore_index=WITHOUT), metrics={"mIoU": iou})}
        for task in scales:
            own: str | Likelihood = HeteroscedasticLaplace() if task in heteroscedastic else likelihood
            tasks[task] = Task(own, metrics={"MAE": MeanAbsoluteError()})
        more: dict[str, Any] = {"heteroscedastic": list(heteroscedastic), "dropout": dropout}
        super().__init__(
            SceneNet(len(classes), scales, encoder, pretrained=pretrained, **more),
            tasks,
            weighting,
            inputs="image",
            optimizer=partial(AdamW, lr=lr, weight_decay=1e-4),
            lr_scheduler=partial(CosineAnnealingLR, T_max=epochs, eta_min=lr / 50),
            samples=samples,
        )
        self.save_hyperparameters(
            {"classes": list(classes), "scales": {task: list(scale) for task, scale in scales.items()}}
            | {"things": list(things), "likelihood": likelihood, "encoder": encoder, "width": width}
            | {"lr": lr, "epochs": epochs, **more, "samples": samples}
        )
        self.instance_ap = nn.ModuleDict({stage: InstanceAP(ignore_index=WITHOUT) for stage in ("val", "test")})

    def instances(self, offsets: Tensor, classes: Tensor) -> Tensor:
        """Return the instances `[B, H, W]` that offsets `[B, 2, H, W]` meet in, within classes `[B, H, W]`."""
        return instances_within(offsets, classes, self.hparams["things"])

    def on_task_outputs(self, stage: Stage, outputs: Mapping[str, Tensor], batch: Any) -> None:
        if stage != "train" and {"semantics", "instances"} <= outputs.keys():
            classes = outputs["semantics"].argmax(1)
            ids = self.instances(outputs["instances"], classes)
            metric: Any = self.instance_ap[stage]
            metric.update(ids, classes, batch["ids"], batch["semantics"])

    def on_validation_epoch_end(self) -> None:
        self._log_instances("val")

    def on_test_epoch_end(self) -> None:
        self._log_instances("test")

    def _log_instances(self, stage: str) -> None:
        metric: Any = self.instance_ap[stage]
        value = metric.compute() if metric.update_called else None
        metric.reset()
        if value is not None:  # there were instances
            self.log(f"{stage}/instances/AP50", value, sync_dist=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for."""
    from lightning_uncertainty.examples._scenes_command import command

    command(arguments)


if __name__ == "__main__":
    main()
