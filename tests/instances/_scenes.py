"""Images of instances that do not overlap, made up."""

from __future__ import annotations

import torch


def scenes(batch=3, height=40, width=56, most=6, seed=0):
    """Return ids `[B, H, W]` of rectangles that hide one another's parts, and a class from 1 to 3 for each pixel."""
    rng = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=rng))

    ids, classes = torch.zeros(2, batch, height, width, dtype=torch.int64)
    for image in range(batch):
        for one in range(1, draw(1, most + 1) + 1):
            top, left = draw(0, height - 6), draw(0, width - 6)
            where = (image, slice(top, top + draw(5, 14)), slice(left, left + draw(5, 18)))
            ids[where], classes[where] = one, draw(1, 4)
    return ids, classes


def apart(batch=2, seed=0):
    """Return ids `[B, 48, 64]` of discs whose centres are at least twelve pixels apart."""
    rng = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    ids = torch.zeros(batch, 48, 64, dtype=torch.int64)
    for image in range(batch):
        cells = torch.randperm(12, generator=rng)[: 1 + int(torch.randint(11, (), generator=rng))]
        for one, cell in enumerate(cells.sort().values.tolist(), start=1):
            row, column = 16 * (cell // 4) + 8, 16 * (cell % 4) + 8
            shift, radius = torch.randint(-2, 3, (2,), generator=rng), int(torch.randint(3, 6, (), generator=rng))
            disc = (rows - row - shift[0]).square() + (columns - column - shift[1]).square() <= radius**2
            ids[image][disc] = one
    return ids


def same_parts(first, second):
    """Whether two maps of ids are the same but for the names of instances."""
    pairs = torch.stack([first.flatten(1), second.flatten(1)], -1)
    for image in pairs:
        both = image.unique(dim=0)
        if any(len(both[:, side].unique()) != len(both) for side in (0, 1)):
            return False
    return bool(((first > 0) == (second > 0)).all())
