"""Scenes of others on disk: the folders of Cityscapes, the arrays of MTAN.

Each is a sequence of raw scenes, which are dicts of arrays: `image` `[H, W, 3]`, uint8, or float from 0 to 1;
`semantics` `[H, W]`, 255 where there is no class; and what there is of `ids`, `disparity`, `depth` `[H, W]` and
`normals` `[H, W, 3]`, NaN where unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

__all__ = ["CITYSCAPES", "LAYOUTS", "WITHOUT", "Array", "Cityscapes", "MTANArrays", "check_root", "read_image"]

Array: TypeAlias = "np.ndarray[Any, Any]"

WITHOUT = 255  # a pixel of no class
CITYSCAPES = (  # in the order of the 19 train ids
    *(
        "road",
        "sidewalk",
        "building",
        "wall",
        "fence",
        "pole",
        "traffic light",
        "traffic sign",
        "vegetation",
        "terrain",
    ),
    *("sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
ID_OF = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # in the files
IDS = 34  # of their classes, with those that are left out
LAYOUTS = {
    "cityscapes": (
        "leftImg8bit/train",
        "leftImg8bit/val",
        "gtFine/train",
        "gtFine/val",
        "disparity/train",
        "disparity/val",
    ),
    "mtan": ("train/image", "train/depth", "val/image", "val/depth"),
}


def check_root(root: Path, layout: str) -> None:
    """Raise where a folder has not what a layout needs.

    Raises:
        ValueError: so it is.
    """
    if missing := [part for part in LAYOUTS[layout] if not (root / part).is_dir()]:
        raise ValueError(
            f"the folder of layout {layout!r} should have {', '.join(LAYOUTS[layout])}: found no "
            f"{', '.join(missing)} in {root}; name the folder that holds them, or another layout"
        )


def read_image(path: Path) -> Any:
    """Return a picture, as Pillow reads it, upright where it says how the camera was held.

    Raises:
        ModuleNotFoundError: Pillow is not installed.
        ValueError: the file is no picture, or not a whole one.
        OSError: there is none.
    """
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading pictures needs Pillow, which comes with matplotlib: pip install 'lightning-uncertainty[plot]'"
        ) from error
    with path.open("rb") as file:
        try:
            image = ImageOps.exif_transpose(Image.open(file))
        except (OSError, SyntaxError, ValueError) as error:  # of which Pillow raises any
            raise ValueError(
                f"a picture should be one that Pillow reads: found {path}, which it does not ({error}); replace it"
            ) from error
    return image


def _read_array(path: Path) -> Array:
    """Return an array, as NumPy reads it.

    Raises:
        ValueError: the file is no array of numbers, or not a whole one.
    """
    try:
        found: Array = np.load(path)
    except (EOFError, ValueError) as error:  # of which NumPy raises either
        raise ValueError(
            f"an array should be one of numbers that NumPy reads: found {path}, which it does not ({error}); replace it"
        ) from error
    return found


def _all_there(files: Sequence[dict[str, Path]], folder: Path, pattern: str) -> None:
    """Raise where a split has no pictures, or one of them no label."""
    if not files:
        raise ValueError(f"a split should have pictures: found no {pattern} in {folder}; unpack them there")
    for scene in files:
        for name, path in scene.items():
            if not path.is_file():
                raise ValueError(
                    f"every picture should have its labels: found no {path} for {scene['image'].name}; add the "
                    f"{name}, or remove the picture"
                )


def _check_sizes(scene: dict[str, Array], files: dict[str, Path]) -> None:
    """Raise where a label has another size than the picture, or several numbers for a pixel."""
    size = scene["image"].shape[:2]
    for name, part in scene.items():
        if part.shape[:2] != size:
            height, width = part.shape[:2]
            raise ValueError(
                f"the {name} of a picture should have its size, {size[0]} x {size[1]}: found {height} x {width} in "
                f"{files[name]}; bring both to one size"
            )
        if name not in ("image", "normals") and part.size != size[0] * size[1]:
            raise ValueError(
                f"the {name} of a picture should have one number for each pixel: found {list(part.shape)} in "
                f"{files[name]}; take one channel"
            )


class Cityscapes(Sequence["dict[str, Array]"]):
    """A split of the official folders.

    Args:
        root: folder that has leftImg8bit, gtFine and disparity.
        split: theirs.
        size: height and width that all is brought to; disparities shrink with the width.

    Raises:
        ValueError: there is no picture, or one has no label.
    """

    def __init__(self, root: Path, split: str, size: tuple[int, int]) -> None:
        end = "_leftImg8bit.png"
        parts = {"semantics": ("gtFine", "gtFine_labelIds"), "ids": ("gtFine", "gtFine_instanceIds")}
        parts["disparity"] = ("disparity", "disparity")
        self.size, self.files = size, []
        for path in sorted((root / "leftImg8bit" / split).glob(f"*/*{end}")):
            start, city = path.name.removesuffix(end), path.parent.name
            labels = {name: root / part / split / city / f"{start}_{kind}.png" for name, (part, kind) in parts.items()}
            self.files.append({"image": path, **labels})
        _all_there(self.files, root / "leftImg8bit" / split, f"<city>/*{end}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        files = self.files[index]
        image = read_image(files["image"])
        scene = {name: np.asarray(read_image(path)) for name, path in files.items() if name != "image"}
        _check_sizes({"image": np.asarray(image), **scene}, files)
        (height, width), (rows, columns) = self.size, scene["ids"].shape
        near = np.ix_((np.arange(height) + 0.5) * rows // height, (np.arange(width) + 0.5) * columns // width)
        near = tuple(part.astype(int) for part in near)
        label, ids, disparity = (scene[name][near].astype(np.int32) for name in ("semantics", "ids", "disparity"))
        if label.max() >= IDS:
            raise ValueError(
                f"ids of classes should be from 0 to {IDS - 1}: found {label.max()} in {files['semantics']}; give the "
                "files *_labelIds.png as they were downloaded"
            )
        train_ids = np.full(IDS, WITHOUT)
        train_ids[list(ID_OF)] = range(len(CITYSCAPES))
        single = np.isin(ids // 1000, ID_OF)  # a group of several has the id of its class alone
        numbers = np.unique(np.where(single, ids, 0), return_inverse=True)[1].reshape(ids.shape)
        return {
            "image": np.asarray(image.convert("RGB").resize((width, height), reducing_gap=2.0)),
            "semantics": train_ids[label],
            "ids": numbers + (0 if not single.all() else 1),
            "disparity": np.where(disparity > 0, (disparity - 1) / 256 * width / columns, np.nan).astype(np.float32),
        }


class MTANArrays(Sequence["dict[str, Array]"]):
    """A split of the folders of NumPy arrays in which MTAN, and LibMTL after it, have NYUv2 and Cityscapes.

    Args:
        root: folder that has train and val.
        split: one of these.
        classes: how many there are; labels are in `label_<classes>`, or in `label` where there is no such folder.

    Raises:
        ValueError: there is no picture, or one has no label, or there are labels of other numbers of classes alone.
    """

    def __init__(self, root: Path, split: str, classes: int) -> None:
        folder = root / split
        label = f"label_{classes}" if (folder / f"label_{classes}").is_dir() else "label"
        there = sorted(path.name for path in folder.glob("label*") if path.is_dir())
        if label not in there:
            raise ValueError(
                f"labels of {classes} classes should be in label_{classes}, or label: found "
                f"{', '.join(there) or 'none'} in {folder}; name the number of those that are there with classes"
            )
        parts = {"image": "image", "semantics": label, "depth": "depth", "normals": "normal"}
        if not (root / "train" / "normal").is_dir():  # what is learnt is tested
            del parts["normals"]
        self.classes = classes
        found = sorted((folder / "image").glob("*.npy"), key=lambda path: (len(path.name), path.name))
        self.files = [{name: folder / part / path.name for name, part in parts.items()} for path in found]
        _all_there(self.files, folder / "image", "*.npy")
        self.shape = _read_array(self.files[0]["image"]).shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        files = self.files[index]
        scene = {name: _read_array(path) for name, path in files.items()}
        for name, what in {"image": "an image", "normals": "normals"}.items():
            if name in scene and (scene[name].ndim != 3 or scene[name].shape[2] != 3):
                raise ValueError(f"{what} should be [H, W, 3]: found {list(scene[name].shape)} in {files[name]}")
        _check_sizes(scene, files)
        if scene["image"].shape != self.shape:
            height, width = scene["image"].shape[:2]
            raise ValueError(
                f"pictures should have one size, {self.shape[0]} x {self.shape[1]} as the first: found {height} x "
                f"{width} in {files['image']}; bring all to one size"
            )
        label = np.rint(scene["semantics"]).astype(np.int64).reshape(scene["image"].shape[:2])
        wrong = (label >= self.classes) & (label != WITHOUT)
        if wrong.any():
            raise ValueError(
                f"labels should be below the number of classes, {self.classes}, and -1 where there is none: found "
                f"{label[wrong].max()} in {files['semantics']}; name their number with classes"
            )
        depth = scene["depth"].astype(np.float32).reshape(label.shape)
        scene |= {
            "semantics": np.where(label < 0, WITHOUT, label),
            "depth": np.where(depth > 0, depth, np.float32(np.nan)),
        }
        if "normals" in scene:
            normals = scene["normals"].astype(np.float32)
            scene["normals"] = np.where((normals != 0).any(-1, keepdims=True), normals, np.float32(np.nan))
        return scene
