"""Draws the contact sheet of "Scenes": 24 of the streets that `lightning_uncertainty.examples.scenes` trains on.

    python docs/streets.py [FILE]

It writes `docs/images/streets.png` where no file is given, in seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_uncertainty.examples.streets import draw_street

ROWS, COLUMNS = 6, 4
HEIGHT, WIDTH = 88, 176
COLOURS = 256  # of all pictures together


def sheet() -> Image.Image:
    """Return the streets of the first seeds, each drawn in twice its size and averaged."""
    drawn = [draw_street(seed, 2 * HEIGHT, 2 * WIDTH).image for seed in range(ROWS * COLUMNS)]
    small = [image.reshape(HEIGHT, 2, WIDTH, 2, 3).mean((1, 3)) for image in drawn]
    rows = [np.concatenate(small[start : start + COLUMNS], 1) for start in range(0, len(small), COLUMNS)]
    return Image.fromarray(np.concatenate(rows).round().astype(np.uint8))


def main(path: Path) -> None:
    """Write the sheet with few colours, so that it is light."""
    few = sheet().quantize(COLOURS, Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images" / "streets.png")
