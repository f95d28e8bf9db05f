"""Tiny folders of scenes in the forms in which they are downloaded."""

import numpy as np
from PIL import Image

SIZE = 32, 64  # of the pictures there
IDS = (7, 8, 11, 23, 26, 24, 4, 0)  # two of which are of no class


def cityscapes(root, splits=("train", "val"), count=3, seed=0):
    """The official folders, with pictures of some stripes of classes and two cars."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    for split in splits:
        for number in range(count):
            city, start = ("aachen", "bochum")[number % 2], f"x_{number:06d}_000019"
            label = np.repeat(np.array(IDS, np.uint8), width // len(IDS))[None].repeat(height, 0)
            ids = label.astype(np.int32)
            ids[label == 26] = 26000 + (np.arange(height) >= 20)[:, None].repeat(8, 1).ravel()
            ids[:8, 40:48] = 24  # a group
            disparity = rng.integers(1, 30000, SIZE).astype(np.uint16)
            disparity[:, :4] = 0
            parts = {
                f"leftImg8bit/{split}/{city}/{start}_leftImg8bit.png": rng.integers(0, 256, (*SIZE, 3)).astype(
                    np.uint8
                ),
                f"gtFine/{split}/{city}/{start}_gtFine_labelIds.png": label,
                f"gtFine/{split}/{city}/{start}_gtFine_instanceIds.png": ids.astype(np.uint16),
                f"disparity/{split}/{city}/{start}_disparity.png": disparity,
            }
            for name, array in parts.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return root


def mtan(root, classes=13, normals=True, count=3, seed=0, label="label"):
    """The arrays of MTAN: images from 0 to 1, labels from -1, depths with 0 where unknown."""
    rng = np.random.default_rng(seed)
    for split in ("train", "val"):
        for number in range(count):
            parts = {
                "image": rng.random((*SIZE, 3)),
                label: rng.integers(-1, classes, SIZE).astype(float),
                "depth": rng.random((*SIZE, 1)) * (rng.random((*SIZE, 1)) > 0.2),
            }
            if normals:
                vectors = rng.normal(size=(*SIZE, 3))
                parts["normal"] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
                parts["normal"][:4] = 0
            for name, array in parts.items():
                (root / split / name).mkdir(parents=True, exist_ok=True)
                np.save(root / split / name / f"{number}.npy", array)
    return root
